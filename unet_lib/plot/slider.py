"""Pictures with sliders: for a page without a kernel, and for a live notebook.

The one thing to move of each chapter; `plot.explore` decides which is shown.
"""

import base64
import hashlib
import html
import io
import itertools
import json

import numpy as np

MAX_HTML_BYTES = 900_000  # of one slider; a notebook stays under 1.5 MB


# A <label> that holds its <input> needs no id, so nothing on a page can clash. The
# script finds its slider by a hash of the pictures; where a page or a notebook shows
# the same slider twice, it sets both up.
_CONTROL = (
    '<label style="flex:1 1 12em">{label}: <output>{text}</output>'
    '<input type="range" min="0" max="{last}" step="1" value="{index}" '
    'aria-label="{label}" aria-valuetext="{text}" autocomplete="off" '
    'style="display:block;width:100%;height:2em;margin:0"></label>'
)
_SLIDER = """\
<div data-explore="{key}" style="max-width:{width:.0f}px">
<div style="display:flex;flex-wrap:wrap;gap:0 1.5em">{controls}</div>
<img src="{source}" alt="{alt}" width="{across}" height="{height}" decoding="sync" \
style="display:block;width:100%;height:auto">
<script>
(() => {{
  const data = {data};
  data.frames.forEach(source => {{ new Image().src = source; }});
  document.querySelectorAll('[data-explore="{key}"]').forEach(box => {{
    const picture = box.querySelector("img");
    const controls = [...box.querySelectorAll("input")];
    const show = () => {{
      let frame = 0;
      controls.forEach((control, which) => {{
        const texts = data.texts[which];
        const index = Number(control.value);
        frame = frame * texts.length + index;
        control.previousElementSibling.textContent = texts[index];
        control.setAttribute("aria-valuetext", texts[index]);
      }});
      picture.src = data.frames[frame];
      picture.alt = data.alts[frame];
    }};
    controls.forEach(control => {{ control.oninput = show; }});
    show();
  }});
}})();
</script>
</div>"""


def page(pictures, values, alt, start, widest):
    """Return pictures with their sliders as HTML that needs no other file.

    pictures: (height, width, 3) uint8, of one size, for all combinations of values.
    values: a dictionary of labels, each with its values.
    alt: says what the picture shows; the values are added to it for each picture.
    start: a dictionary of the labels and their values at first.
    widest: CSS pixels across, at most.
    Raises ValueError where it would exceed MAX_HTML_BYTES.
    """
    texts = {label: [_text(value) for value in values[label]] for label in values}
    named = [[f"{label} {text}" for text in texts[label]] for label in texts]
    alts = [", ".join([alt, *chosen]) for chosen in itertools.product(*named)]
    first = list(itertools.product(*values.values())).index(tuple(start.values()))
    controls = ""
    for label in values:
        index = values[label].index(start[label])
        controls += _CONTROL.format(
            label=html.escape(label),
            text=html.escape(texts[label][index]),
            last=len(values[label]) - 1,
            index=index,
        )
    height, across = pictures[0].shape[:2]
    lossless = [encode(picture, "webp", None) for picture in pictures]
    for quality in (85, 70, 55):  # the best that fits; at 55 grain begins to go
        lossy = [encode(picture, "webp", quality) for picture in pictures]
        frames = [
            "data:image/webp;base64," + base64.b64encode(min(both, key=len)).decode()
            for both in zip(lossless, lossy, strict=True)
        ]
        data = json.dumps(
            {"texts": list(texts.values()), "alts": alts, "frames": frames}
        )
        found = _SLIDER.format(
            key=hashlib.sha256((data + controls).encode()).hexdigest()[:12],
            width=min(widest, 1.5 * across),  # else blurred
            controls=controls,
            source=frames[first],
            alt=html.escape(alts[first]),
            across=across,
            height=height,
            data=data.replace("<", "\\u003c"),  # nothing can end the script early
        )
        if len(found) <= MAX_HTML_BYTES:
            return found
    raise ValueError(
        f"this slider of {len(pictures)} pictures of {across}×{height} pixels takes "
        f"{len(found):,} bytes, more than {MAX_HTML_BYTES:,}: give it fewer values, a "
        "smaller width, or a part of the image"
    )


def live_control(draw, values, start):
    """Return an ipywidgets control that draws anew at each change.

    draw: takes one value of each slider and returns a picture as in `page`.
    values, start: as in `page`.
    Raises ImportError without ipywidgets.
    """
    import ipywidgets

    sliders = [
        ipywidgets.SelectionSlider(
            options=[(_text(value), value) for value in options],
            value=start[label],
            description=label,
            continuous_update=False,
            style={"description_width": "initial"},
            layout={"width": "95%"},
        )
        for label, options in values.items()
    ]
    picture = ipywidgets.Image(format="webp", layout={"max_width": "100%"})

    def update(_=None):
        drawn = draw(*(slider.value for slider in sliders))
        picture.value = encode(drawn, "webp")

    for slider in sliders:
        slider.observe(update, names="value")
    update()
    return ipywidgets.VBox([*sliders, picture])


def encode(picture, kind, quality=85):
    """Return a picture, (height, width, 3) uint8, as the bytes of a file.

    kind: such as "webp". quality: 0 to 100; None is lossless.
    """
    from PIL import Image

    how = {"lossless": True} if quality is None else {"quality": quality}
    stored = io.BytesIO()
    Image.fromarray(picture).save(stored, kind, optimize=True, **how)
    return stored.getvalue()


def _text(value):
    """Return a value as a reader sees it: 0.30000000000000004 as 0.3."""
    return f"{value:g}" if isinstance(value, (float, np.floating)) else str(value)
