"""Pictures with controls: for a page without a kernel, and for a live notebook.

`plot.explore` and `plot.compare` decide which of the two is shown.
"""

import base64
import hashlib
import html
import io
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

MAX_HTML_BYTES = 1_600_000  # of one slider; a notebook stays under 2.4 MB

# A <label> that holds its <input> needs no id, and a <form> keeps its buttons to
# itself, so nothing on a page can clash. The script finds its slider by a hash of the
# pictures; where a page or a notebook shows the same slider twice, it sets both up.
_SLIDER_CONTROL = (
    '<label data-axis style="flex:1 1 12em">{label}: <output>{text}</output>'
    '<input type="range" min="0" max="{last}" step="1" value="{index}" '
    'aria-label="{label}" aria-valuetext="{text}" autocomplete="off" '
    'style="display:block;width:100%;height:2em;margin:0"></label>'
)
_BUTTONS = (
    '<fieldset data-axis style="border:0;flex:1 1 12em;margin:0;min-width:0;'
    'padding:0 0 .5em"><legend style="float:none;font-size:inherit;margin:0;'
    'padding:0;width:auto">{label}</legend>{buttons}</fieldset>'
)
_BUTTON = (
    '<label style="margin:0 1em 0 0;white-space:nowrap"><input type="radio" '
    'name="{label}" value="{index}" autocomplete="off"{checked}> {text}</label>'
)
# An image is enlarged to whole pixels that stay sharp.
_PICTURE = (
    'width="{across}" height="{height}" decoding="sync" '
    'style="display:block;width:100%;height:auto;image-rendering:{rendering}{more}"'
)
_EXPLORE = """\
<form data-explore="{key}" onsubmit="return false" style="max-width:{width:.0f}px">
<div style="display:flex;flex-wrap:wrap;gap:0 1.5em">{controls}</div>
<div style="align-items:center;display:flex;flex-wrap:wrap;gap:.5em 1.5em">\
<div style="flex:0 1 {shown:.0f}px"><img src="{source}" alt="{alt}" {picture}></div>\
{note}</div>
<script>
(() => {{
  const data = {data};
  data.frames.forEach(source => {{ new Image().src = source; }});
  document.querySelectorAll('[data-explore="{key}"]').forEach(box => {{
    const picture = box.querySelector("img");
    const note = box.querySelector("[data-note]");
    const axes = [...box.querySelectorAll("[data-axis]")];
    const show = () => {{
      let frame = 0;
      axes.forEach((axis, which) => {{
        const texts = data.texts[which];
        const inputs = [...axis.querySelectorAll("input")];
        const output = axis.querySelector("output");
        const index = output ? Number(inputs[0].value)
          : inputs.findIndex(input => input.checked);
        frame = frame * texts.length + index;
        if (!output) return;
        output.textContent = texts[index];
        inputs[0].setAttribute("aria-valuetext", texts[index]);
      }});
      picture.src = data.frames[frame];
      picture.alt = data.alts[frame];
      if (note) note.innerHTML = data.notes[frame];
    }};
    box.oninput = show;
    show();
  }});
}})();
</script>
</form>"""
_DIVIDER = """\
<div data-compare="{key}" style="max-width:{width:.0f}px">
<div style="cursor:ew-resize;overflow:hidden;position:relative;touch-action:pan-y">
<img src="{before}" alt="{alt}: {left}" {picture}>
<img src="{after}" alt="{alt}: {right}" {picture_over}>
<div data-line style="background:#fff;bottom:0;box-shadow:0 0 4px #000;left:50%;\
position:absolute;top:0;width:3px;margin-left:-1.5px;pointer-events:none"></div>
</div>
<label style="align-items:center;display:flex;gap:1em"><span>{left}</span>\
<input type="range" min="0" max="100" value="50" autocomplete="off" \
aria-label="{left} on the left, {right} on the right: position of the divider" \
style="flex:1;height:2em;margin:0;min-width:0"><span>{right}</span></label>
<script>
document.querySelectorAll('[data-compare="{key}"]').forEach(box => {{
  const stage = box.firstElementChild;
  const control = box.querySelector("input");
  const show = () => {{
    stage.children[1].style.clipPath = `inset(0 0 0 ${{control.value}}%)`;
    stage.children[2].style.left = `${{control.value}}%`;
  }};
  const follow = event => {{
    const {{left, width}} = stage.getBoundingClientRect();
    control.value = Math.round(100 * (event.clientX - left) / width);
    show();
  }};
  stage.onpointerdown = event => {{ follow(event); event.preventDefault(); }};
  stage.onpointermove = event => {{ if (event.buttons) follow(event); }};
  control.oninput = show;
  show();
}});
</script>
</div>"""


def page(
    pictures: list[np.ndarray],
    values: dict[str, list[Any]],
    alt: str,
    start: dict[str, Any],
    shown: float,
    notes: list[str] | None = None,
) -> str:
    """Return pictures with their controls as HTML that needs no other file.

    pictures: (height, width, 3) uint8, of one size, for all combinations of values.
    values: a dictionary of labels, each with its values.
    alt: says what the picture shows; the values are added to it for each picture.
    start: a dictionary of the labels and their values at first.
    shown: CSS pixels across that a picture takes.
    notes: HTML to show beside each picture.
    Raises ValueError where it would exceed MAX_HTML_BYTES.
    """
    texts = {label: [_text(value) for value in values[label]] for label in values}
    named = [[f"{label} {text}" for text in texts[label]] for label in texts]
    alts = [", ".join([alt, *chosen]) for chosen in itertools.product(*named)]
    first = list(itertools.product(*values.values())).index(tuple(start.values()))
    controls = "".join(
        _control(label, texts[label], values[label].index(start[label]), values[label])
        for label in values
    )
    note = ""
    if notes:
        note = f'<div data-note style="flex:1 1 12em">{notes[first]}</div>'
    height, across = pictures[0].shape[:2]
    for frames in _frames(pictures):
        shows = {"texts": list(texts.values()), "alts": alts, "frames": frames}
        data = json.dumps(shows | ({"notes": notes} if notes else {}))
        found = _EXPLORE.format(
            key=hashlib.sha256((data + controls).encode()).hexdigest()[:12],
            width=700 if notes else shown,
            shown=shown,
            controls=controls,
            source=frames[first],
            alt=html.escape(alts[first]),
            picture=_picture(pictures[0], shown),
            note=note,
            data=data.replace("<", "\\u003c"),  # nothing can end the script early
        )
        if len(found) <= MAX_HTML_BYTES:
            return found
    raise ValueError(
        f"This slider of {len(pictures)} pictures of {across}×{height} pixels takes "
        f"{len(found):,} bytes, more than {MAX_HTML_BYTES:,}: give it fewer values, a "
        "smaller width, or a part of the image."
    )


def divider(
    pictures: list[np.ndarray], labels: tuple[str, str], alt: str, shown: float
) -> str:
    """Return two pictures with a divider to move as HTML that needs no other file.

    pictures: two, (height, width, 3) uint8, of one size.
    labels: what each is. alt: what both show. shown: CSS pixels across.
    """
    before, after = next(_frames(pictures))
    left, right = map(html.escape, labels)
    return _DIVIDER.format(
        key=hashlib.sha256((before + after).encode()).hexdigest()[:12],
        width=shown,
        before=before,
        after=after,
        left=left,
        right=right,
        alt=html.escape(alt),
        picture=_picture(pictures[0], shown),
        picture_over=_picture(
            pictures[0], shown, ";clip-path:inset(0 0 0 50%);inset:0;position:absolute"
        ),
    )


def live_control(
    draw: Callable[..., np.ndarray],
    values: dict[str, list[Any]],
    start: dict[str, Any],
    text: Callable[..., str] | None = None,
) -> Any:
    """Return an ipywidgets control that draws at each change.

    draw: takes one value of each control and returns a picture as in `page`.
    values, start: as in `page`. text: takes the same and returns HTML.
    Raises ImportError without ipywidgets.
    """
    import ipywidgets

    controls = []
    for label, options in values.items():
        how = {
            "options": [(_text(value), value) for value in options],
            "value": start[label],
            "description": label,
            "style": {"description_width": "initial"},
        }
        if _unordered(options):
            controls.append(ipywidgets.ToggleButtons(**how))
        else:
            layout = {"width": "95%"}
            controls.append(
                ipywidgets.SelectionSlider(
                    **how, continuous_update=False, layout=layout
                )
            )
    picture = ipywidgets.Image(format="webp", layout={"max_width": "100%"})
    note = ipywidgets.HTML()

    def update(_: object = None) -> None:
        chosen = [control.value for control in controls]
        shown = Image.fromarray(draw(*chosen))
        picture.value = encode(shown, "webp", quality=85)
        note.value = text(*chosen) if text else ""

    for control in controls:
        control.observe(update, names="value")
    update()
    return ipywidgets.VBox([*controls, picture, note])


def encode(image: Image.Image, kind: str, **how: Any) -> bytes:
    """Return an image as the bytes of a file, such as "webp"; `how` is Pillow's."""
    stored = io.BytesIO()
    image.save(stored, kind, optimize=True, **how)
    return stored.getvalue()


def smallest(picture: np.ndarray) -> tuple[str, bytes]:
    """Return ("png" or "jpeg", bytes): JPEG where it saves a fifth or more.

    A drawing of few colors is a PNG with a palette if no pixel changes visibly.
    """
    image = Image.fromarray(picture)
    few = image.quantize(256, dither=Image.Dither.NONE)
    change = np.abs(np.asarray(few.convert("RGB")).astype(int) - picture).max()
    png = encode(few if change <= 16 else image, "png")
    jpeg = encode(image, "jpeg", quality=80)
    return ("jpeg", jpeg) if len(jpeg) < 0.8 * len(png) else ("png", png)


def _frames(pictures: Sequence[np.ndarray]) -> Iterator[list[str]]:
    """Yield the pictures as addresses of data, in ever smaller qualities."""
    images = [Image.fromarray(picture) for picture in pictures]
    lossless = [encode(image, "webp", lossless=True) for image in images]
    for quality in (85, 70, 55):  # at 55 grain begins to go
        lossy = [encode(image, "webp", quality=quality) for image in images]
        yield [
            "data:image/webp;base64," + base64.b64encode(min(both, key=len)).decode()
            for both in zip(lossless, lossy, strict=True)
        ]


def _picture(picture: np.ndarray, shown: float, more: str = "") -> str:
    height, across = picture.shape[:2]
    rendering = "pixelated" if shown > across else "auto"
    return _PICTURE.format(across=across, height=height, rendering=rendering, more=more)


def _control(label: str, texts: list[str], index: int, values: list[Any]) -> str:
    label = html.escape(label)
    texts = [html.escape(text) for text in texts]
    if not _unordered(values):
        return _SLIDER_CONTROL.format(
            label=label, text=texts[index], last=len(texts) - 1, index=index
        )
    buttons = "".join(
        _BUTTON.format(
            label=label,
            text=text,
            index=number,
            checked=" checked" if number == index else "",
        )
        for number, text in enumerate(texts)
    )
    return _BUTTONS.format(label=label, buttons=buttons)


def _unordered(values: list[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _text(value: Any) -> str:
    """Return a value as a reader sees it: 0.30000000000000004 as 0.3."""
    return f"{value:g}" if isinstance(value, (float, np.floating)) else str(value)
