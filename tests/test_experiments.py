"""Tables of runs: read, made, stopped, shared out, recorded; nothing held out leaks."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unet_lib.augment import Augmentation, TileSampler
from unet_lib.data import Stacks, synthetic_em
from unet_lib.data.tiff import read_tiff
from unet_lib.metrics import evaluate
from unet_lib.model import UNet
from unet_lib.networks import load_network
from unet_lib.predict import predict
from unet_lib.results import figures
from unet_lib.results import table as experiments
from unet_lib.results.table import read_table, run_table, state
from unet_lib.train import TrainConfig, checkpoint, examples, steps
from unet_lib.weights import weight_map

REAL = Path(__file__).parent.parent / "results" / "experiments.toml"

# Five slices: each of the five folds holds one out.
IMAGES, LABELS = synthetic_em(slices=5, size=48, seed=1)
TEST_IMAGES, TEST_LABELS = synthetic_em(slices=2, size=48, seed=2)
STACKS = Stacks(IMAGES, LABELS, TEST_IMAGES, None, "synthetic")
TILE = UNet(base_channels=1, depth=1).input_size(20)

TABLE = f"""
[scales.tiny]
base_channels = 1
depth = 1
tile = {TILE}
batch = 8
learning_rate = 1e-3
steps = 2
save_every = 1
augmentation = {{ deformation = 2.0, contrast = 0.125 }}
device = "cpu"

[scales.tiny.variants.wide]
base_channels = 2
augmentation = {{ deformation = 3.0 }}

[scales.other]
seed = 7
held_out = [4]

[variants.plain]

[variants.wide]
learning_rate = 1e-2
augmentation = {{ mirror = true }}
versions = 8

[[runs]]
scale = "tiny"
variants = ["plain", "wide"]
folds = [1, 2]
seeds = [0, 3]

[[runs]]
scale = "tiny"
variants = ["wide", "plain"]
folds = [2, 0]
seeds = [3]

[[runs]]
scale = "other"
variants = ["plain"]
folds = [0]
seeds = [1]
"""


def table(folder, text=TABLE, only="*", slices=5):
    path = folder / "table.toml"
    path.write_text(text)
    return read_table(path, only, slices)


# The experiments.


def test_runs_in_their_order_each_once(tmp_path):
    assert [one.name for one in table(tmp_path)] == [
        *["tiny/plain/1-0", "tiny/plain/2-0", "tiny/wide/1-0", "tiny/wide/2-0"],
        *["tiny/plain/1-3", "tiny/plain/2-3", "tiny/wide/1-3", "tiny/wide/2-3"],
        *["tiny/wide/0-3", "tiny/plain/0-3", "other/plain/0-1"],
    ]
    chosen = table(tmp_path, only="*/wide/[12]-3")
    assert [one.name for one in chosen] == ["tiny/wide/1-3", "tiny/wide/2-3"]


def test_a_run_is_its_scale_changed_by_its_variant(tmp_path):
    runs = {one.name: one for one in table(tmp_path)}
    shared = {"depth": 1, "tile": TILE, "batch": 8, "steps": 2, "save_every": 1}
    shared["device"] = "cpu"
    plain = runs["tiny/plain/2-3"]
    assert plain.config == TrainConfig(
        base_channels=1,
        learning_rate=1e-3,
        augmentation=Augmentation(deformation=2.0, contrast=0.125),
        seed=3,
        held_out=(1,),
        **shared,
    )
    assert plain[:4] == ("tiny", "plain", 2, 3)
    # The variant over the scale, what the scale says of the variant over both.
    wide = runs["tiny/wide/0-3"]
    assert wide.config == TrainConfig(
        base_channels=2,
        learning_rate=1e-2,
        augmentation=Augmentation(deformation=3.0, contrast=0.125, mirror=True),
        seed=3,
        **shared,
    )
    assert (plain.versions, wide.versions) == (7, 8)
    # What the row says, it alone says.
    assert runs["other/plain/0-1"].config == TrainConfig(seed=1)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[scales.tiny]", "[scales.tiny", r"table\.toml is not valid TOML: .*line 2"),
        (TABLE, "", r"table\.toml has no 'runs': expected \[scales"),
        (TABLE, "runs = 3", r"table\.toml is wrong .*int.*: expected \[scales"),
        (TABLE, "[runs]\nscale = 'tiny'", r"table\.toml, run 1 is wrong"),
        ("folds = [2, 0]\n", "", r"table\.toml, run 2 has no 'folds'"),
        ("folds = [2, 0]", "folds = 2", r"run 2 is wrong \('int' object"),
        ("folds = [2, 0]", "folds = [[2]]", r"run 2 is wrong \(unhashable"),
        ("folds = [2, 0]", "folds = [6]", r"tiny/wide: folds are 1 to 5, .* not 6"),
        ("folds = [2, 0]", "folds = ['1']", r"tiny/wide: folds are .* not '1'"),
        ("seeds = [3]", "seeds = [-1]", r"table\.toml, tiny/wide: seed must be"),
        ('scale = "other"', 'scale = "large"', r"large/plain has no 'large'"),
        ('["wide", "plain"]', '["tall"]', r"table\.toml, tiny/tall has no 'tall'"),
        ("learning_rate = 1e-2", "rate = 1e-2", r"tiny/wide: Unknown field.* rate"),
        ("steps = 2", "steps = 0", r"table\.toml, tiny/plain: steps must be"),
        ("mirror = true", "turn = true", "tiny/wide: Unknown field.* turn of Augm"),
        ("{ mirror = true }", "3", "tiny/wide is wrong .*int"),
        ("versions = 8", "versions = 2", r"wide: versions must be of .* not 2"),
        ("versions = 8", "versions = [8]", r"wide: versions must be of .* not \[8\]"),
        ("[variants.plain]", "[variants]\nplain = 3", r"tiny/plain is wrong .*int"),
        ("[scales.other]", "[scales]\nother = 3\n[no]", r"other/plain is wrong .*int"),
        ("versions = 8", "images = 5", r"wide: images must be 1 to 4, not 5"),
        ("versions = 8", "images = 0", r"wide: images must be 1 to 4, not 0"),
        ("versions = 8", "split = 'odd'", r"wide: split must be of .* not 'odd'"),
        ("versions = 8", "pretrained = true", r"wide: pretrained is for other images"),
        # A name mistyped there would leave the variant as it is elsewhere.
        ("tiny.variants.wide", "tiny.variants.wyde", r"tiny/plain: .* \['wyde'\]"),
    ],
)
def test_what_is_no_table(tmp_path, old, new, message):
    assert old in TABLE
    with pytest.raises(ValueError, match=message):
        table(tmp_path, TABLE.replace(old, new))


def test_a_pattern_that_no_run_fits(tmp_path):
    with pytest.raises(ValueError, match=r"table\.toml has no run .* 'full/\*'"):
        table(tmp_path, only="full/*")


def test_a_table_of_other_letters_or_none(tmp_path):
    path = tmp_path / "table.toml"
    with pytest.raises(FileNotFoundError):
        read_table(path)
    path.write_bytes(b"[scales.gr\xf6\xdfe]")
    with pytest.raises(ValueError, match=r"table\.toml is not valid TOML: .*utf-8"):
        read_table(path)


def test_folds_of_the_books_table_cover_all_slices():
    blocks, combs = {}, {}
    for one in read_table(REAL):
        if one.fold == 0:
            assert one.scored == one.config.held_out == ()
            continue
        assert set(one.scored) <= set(one.config.held_out)
        step = 5 if one.variant == "interleaved" else 1
        assert set(np.diff(one.scored)) == {step}
        found = combs if step == 5 else blocks
        # The same of every scale, variant and seed.
        assert found.setdefault(one.fold, one.scored) == one.scored
    for found in (blocks, combs):
        assert sorted(sum(found.values(), ())) == list(range(30))


def test_few_images_are_drawn_by_the_seed_and_nested(tmp_path):
    text = TABLE + "".join(
        f"""
[variants.few-{images}]
images = {images}
[[runs]]
scale = "tiny"
variants = ["few-{images}"]
folds = [2]
seeds = [0, 1, 2, 3]
"""
        for images in (1, 2, 4)
    )
    trained = {}
    for one in table(tmp_path, text, "tiny/few-*"):
        assert one.scored == (1,)
        assert set(one.scored) <= set(one.config.held_out)
        trained[one.variant, one.seed] = set(range(5)) - set(one.config.held_out)
    for seed in range(4):
        one, two, four = (trained[f"few-{images}", seed] for images in (1, 2, 4))
        assert one < two < four == {0, 2, 3, 4}
        assert (len(one), len(two)) == (1, 2)
    assert len({tuple(trained["few-1", seed]) for seed in range(4)}) > 1


def test_each_variant_of_the_books_table_changes_what_its_name_says():
    best = {"average", "dropout", "augmentation"}
    changes = {
        "no-weight-map": {"weighting"},
        "no-deformation": {"augmentation"},
        "no-deformation-rotation": {"augmentation"},
        "no-dropout": {"dropout"},
        "padded": {"padding", "tile"},
        "batch-norm": {"batch_norm"},
        "8-channels": {"base_channels"},
        "4-channels": {"base_channels"},
        "best": best,
        "best-slow-ema": best,
        "interleaved": {"held_out"},
    }
    for images in (1, 3, 6, 12):
        changes[f"{images}-image" + "s" * (images > 1)] = {"held_out"}
        changes[f"{images}-image" + "s" * (images > 1) + "-no-deformation-rotation"] = {
            "held_out",
            "augmentation",
        }
    runs = {one.name: dataclasses.asdict(one.config) for one in read_table(REAL)}
    for scale in ("quarter-adam-2500", "quarter-adam-10000"):
        for name, found in runs.items():
            _, variant, run = name.split("/")
            fold = run.partition("-")[0]
            if name.startswith(f"{scale}/") and variant != "baseline" and fold != "0":
                plain = runs[f"{scale}/baseline/{fold}-0"] | {"seed": found["seed"]}
                unlike = {key for key in found if found[key] != plain[key]}
                assert unlike == changes[variant], name


def test_each_scale_of_the_books_table_is_what_its_name_says():
    runs = read_table(REAL)
    for one in runs:
        width, optimizer, steps = one.scale.split("-")
        channels = {"full": 64, "half": 32, "quarter": 16}[width]
        if one.variant.endswith("-channels"):
            channels = int(one.variant.partition("-")[0])
        assert one.config.base_channels == channels
        assert one.config.optimizer == optimizer
        assert one.config.steps == int(steps)
        # In steps, an average reaches back 1 / (1 - decay): as far in parts of the run.
        if one.variant == "best":
            reach = 1 / (1 - one.config.average) / one.config.steps
            assert reach == pytest.approx(1 / 30, rel=0.01)
        # The paper's, but for what the scale's name says and what the page lists.
        if one.variant == "paper":
            paper = TrainConfig(
                base_channels=channels,
                steps=one.config.steps,
                tile=444,
                learning_rate=one.config.learning_rate,
                precision="bfloat16",
                held_out=one.config.held_out,
                watch_at=one.config.watch_at,
            )
            assert one.config == paper


# The runs.


class Stopped(Exception):
    """Stands for whatever ends a program."""


def make(folder, only, stacks=STACKS, text=TABLE):
    """The runs of that pattern, made in a folder's work and results."""
    runs = table(folder, text, only)
    return run_table(runs, stacks, folder / "work", folder / "results", False)


def files(folder):
    """The contents of files below a folder by their names, but for when it was."""
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file():
            found[name] = path.read_bytes()
        if path.name == "history.csv":
            rows = [line.split(",") for line in path.read_text().splitlines()]
            found[name] = [row[:1] + row[2:] for row in rows]
        if path.name == "metrics.json":
            metrics = json.loads(path.read_text())
            del metrics["seconds"], metrics["date"]
            found[name] = metrics
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder where three runs are made; not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    names = [*make(folder, "tiny/*/2-0"), *make(folder, "tiny/wide/0-3")]
    assert names == ["tiny/plain/2-0", "tiny/wide/2-0", "tiny/wide/0-3"]
    return folder


def read_png(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def record_of(folder, name):
    return json.loads((folder / "results" / name / "scores.json").read_text())


def network_of(folder, name):
    return load_network(folder / "work" / name / "network.safetensors")


@pytest.mark.parametrize(
    ("name", "masks"),
    [("tiny/plain/2-0", {"01.png"}), ("tiny/wide/0-3", {"00.png", "01.png"})],
)
def test_the_record(made, name, masks):
    record = made / "results" / name
    assert set(files(record)) == {
        *("config.json", "history.csv", "metrics.json", "scores.json"),
        *(f"masks/{mask}" for mask in masks),
    }
    for copied in ("config.json", "history.csv", "metrics.json"):
        assert (record / copied).read_bytes() == (
            made / "work" / name / copied
        ).read_bytes()
    config = TrainConfig.from_dict(json.loads((record / "config.json").read_text()))
    assert [config] == [one.config for one in table(made, only=name)]


@pytest.mark.parametrize(("variant", "own"), [("plain", 7), ("wide", 8)])
def test_held_out_slices_are_scored(made, variant, own):
    name = f"tiny/{variant}/2-0"
    record, network = record_of(made, name), network_of(made, name)
    assert record["stack"] == "train"
    assert record["slices"] == [1]
    assert record["versions"] == own
    assert list(record["scores"]) == ["1", "7", "8"]
    for versions in (1, 7, 8):
        probabilities = predict(network, IMAGES[[1]], versions=versions)
        scores = evaluate(LABELS[[1]], probabilities)
        assert record["scores"][str(versions)] == scores.to_dict()
        if versions == own:
            mask = read_png(made / "results" / name / "masks" / "01.png")
            np.testing.assert_array_equal(mask, 255 * (probabilities[0] > 0.5))


def test_the_test_stack_is_predicted(made):
    name = "tiny/wide/0-3"
    record = record_of(made, name)
    assert record.pop("training")["slices"] == [0, 1, 2, 3, 4]
    assert record == {"stack": "test", "slices": [0, 1], "versions": 8, "scores": {}}
    expected = predict(network_of(made, name), TEST_IMAGES, versions=8)
    written = read_tiff(made / "work" / name / "test-probabilities.tif")
    assert written.dtype == np.float32
    np.testing.assert_array_equal(written, expected)
    for number, probabilities in enumerate(expected):
        mask = read_png(made / "results" / name / "masks" / f"{number:02}.png")
        np.testing.assert_array_equal(mask, 255 * (probabilities > 0.5))
    with pytest.raises(ValueError, match="scores of versions none, not 8"):
        figures(made / "results" / name, 8)


def test_a_test_stack_with_labels_is_scored_in_one_way(made, tmp_path):
    name = "tiny/wide/0-3"
    labeled = dataclasses.replace(STACKS, test_labels=TEST_LABELS)
    make(tmp_path, name, labeled)
    record = record_of(tmp_path, name)
    assert list(record["scores"]) == ["8"]
    probabilities = read_tiff(tmp_path / "work" / name / "test-probabilities.tif")
    assert record["scores"]["8"] == evaluate(TEST_LABELS, probabilities).to_dict()
    assert record["slices"] == [0, 1]
    # But for the scores it is as without: nothing was trained on the labels.
    without, scored = (files(one / "results" / name) for one in (made, tmp_path))
    assert without.pop("scores.json") != scored.pop("scores.json")
    assert without == scored


def test_what_is_recorded_is_not_made_again(made, monkeypatch):
    before = files(made)
    monkeypatch.setattr(experiments, "fit", None)
    assert make(made, "tiny/*/2-0") == []
    assert files(made) == before


def test_states(made, tmp_path):
    (run,) = table(tmp_path, only="tiny/plain/2-0")
    results, work = made / "results", made / "work"
    assert state(run, work, results) == "recorded"
    assert state(run, work, tmp_path) == "begun"
    assert state(run, tmp_path, tmp_path) == "missing"
    # Where it runs and how often it looks is no other run.
    text = TABLE.replace("save_every = 1", "watch_at = [1]")
    (run,) = table(tmp_path, text, run.name)
    assert state(run, work, results) == "recorded"
    text = TABLE.replace("steps = 2", "steps = 3\nw0 = 5")
    (run,) = table(tmp_path, text, run.name)
    assert state(run, work, results) == "recorded with another steps, w0"
    assert state(run, work, tmp_path) == "begun"
    (tmp_path / run.name).mkdir(parents=True)
    with pytest.raises(ValueError, match=r"config\.json is not a run's configuration"):
        state(run, work, tmp_path)


def test_a_record_of_another_configuration_is_refused_before_all(made, tmp_path):
    text = TABLE.replace("learning_rate = 1e-2", "learning_rate = 1e-4")
    runs = table(tmp_path, text, "tiny/wide/*")
    assert runs[0].name == "tiny/wide/1-0"  # missing, and before the one that differs
    message = r"wide.2-0 is recorded with another learning_rate .* move the record"
    with pytest.raises(ValueError, match=message):
        run_table(runs, STACKS, tmp_path / "work", made / "results", False)
    assert not (tmp_path / "work").exists()
    # Begun with another configuration, it is not gone on with.
    runs = table(tmp_path, text, "tiny/wide/2-0")
    with pytest.raises(ValueError, match="holds another run: learning_rate differ"):
        run_table(runs, STACKS, made / "work", tmp_path / "results", False)
    assert not (tmp_path / "results").exists()


def test_stopped_in_training_it_goes_on(made, tmp_path, monkeypatch):
    name, save = "tiny/wide/2-0", checkpoint.save_checkpoint
    taken = []

    def stops(folder, state):
        save(folder, state)
        taken.append(state.step)
        if len(taken) == 1:
            raise Stopped

    monkeypatch.setattr(checkpoint, "save_checkpoint", stops)
    with pytest.raises(Stopped):
        make(tmp_path, name)
    assert not (tmp_path / "results").exists()
    assert make(tmp_path, name) == [name]
    assert taken == [1, 2]
    assert files(tmp_path / "results" / name) == files(made / "results" / name)
    network = f"work/{name}/network.safetensors"
    assert (tmp_path / network).read_bytes() == (made / network).read_bytes()


def test_stopped_in_recording_it_is_recorded_again(made, tmp_path, monkeypatch):
    name, save, taken = "tiny/plain/2-0", checkpoint.save_checkpoint, []

    def counts(folder, state):
        taken.append(state.step)
        save(folder, state)

    def killed(path, *args, **options):
        path.write_bytes(b"half")
        path.with_name("99.png").write_bytes(b"of another")
        raise Stopped

    monkeypatch.setattr(checkpoint, "save_checkpoint", counts)
    with monkeypatch.context() as patch:
        patch.setattr(experiments, "save_png", killed)
        with pytest.raises(Stopped):
            make(tmp_path, name)
    (run,) = table(tmp_path, only=name)
    assert state(run, tmp_path / "work", tmp_path / "results") == "begun"
    assert make(tmp_path, name) == [name]
    assert taken == [1, 2]  # not trained again
    expected = {f"{name}/{file}" for file in files(made / "results" / name)}
    assert set(files(tmp_path / "results")) == expected


def test_a_run_that_diverges_is_left_and_said_at_the_end(made, tmp_path):
    # One step so large that the next loss is no number, first in the experiments.
    text = TABLE.replace("learning_rate = 1e-3", "learning_rate = 1e30", 1)
    message = r"(?s)^1 run.* recorded, 1 diverged\.\ntiny/plain/2-0: The .*1e\+30"
    with pytest.raises(FloatingPointError, match=message):
        make(tmp_path, "tiny/*/2-0", text=text)
    ours, theirs = (one / "results" / "tiny" for one in (tmp_path, made))
    assert [path.name for path in ours.iterdir()] == ["wide"]
    assert files(ours / "wide" / "2-0") == files(theirs / "wide" / "2-0")


HOLDER = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_what_another_process_makes_is_left_to_it(tmp_path):
    folder = tmp_path / "work" / "tiny" / "plain" / "2-0"
    folder.mkdir(parents=True)
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder / "taken")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert other.stdout.readline() == b"held\n"
        assert make(tmp_path, "tiny/plain/[12]-0") == ["tiny/plain/1-0"]
        assert make(tmp_path, "tiny/plain/[12]-0") == []
    finally:
        other.kill()
        other.communicate()
    # It was killed, and its hold has ended with it.
    assert make(tmp_path, "tiny/plain/[12]-0") == ["tiny/plain/2-0"]


def test_what_is_being_made_is_not_made_twice(tmp_path, monkeypatch):
    fit, meanwhile = experiments.fit, []

    def fits(*args):
        if not meanwhile:
            meanwhile.append(None)
            meanwhile.append(make(tmp_path, "tiny/plain/2-0"))
        return fit(*args)

    monkeypatch.setattr(experiments, "fit", fits)
    assert make(tmp_path, "tiny/plain/2-0") == ["tiny/plain/2-0"]
    assert meanwhile == [None, []]


def test_what_another_process_has_just_made_is_not_made_again(tmp_path, monkeypatch):
    """Made, that is, between the look at the folders and the taking of the run."""
    lock, others = experiments.FileLock, []

    def late(path, timeout):
        if not others:
            others.append(path)
            assert make(tmp_path, "tiny/plain/2-0") == ["tiny/plain/2-0"]
        return lock(path, timeout)

    monkeypatch.setattr(experiments, "FileLock", late)
    assert make(tmp_path, "tiny/plain/2-0") == []


def test_under_torchrun_it_is_refused(tmp_path, monkeypatch):
    """There each process would wait for ever for the others in a run that it has."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="without torchrun, once for each GPU"):
        make(tmp_path, "tiny/plain/2-0")
    assert not (tmp_path / "work").exists()


def test_progress(tmp_path, capsys):
    runs = table(tmp_path, only="tiny/plain/2-0")
    run_table(runs, STACKS, tmp_path, tmp_path / "results")
    captured = capsys.readouterr()
    assert captured.out == "tiny/plain/2-0: missing\n"
    assert "2/2" in captured.err
    run_table(runs, STACKS, tmp_path, tmp_path / "again", progress=False)
    assert capsys.readouterr() == ("", "")


# Nothing that is held out is trained on.


@pytest.mark.parametrize("name", ["tiny/plain/2-0", "tiny/wide/2-0"])
def test_what_is_held_out_does_not_reach_the_network(made, tmp_path, name):
    images, labels = IMAGES.copy(), LABELS.copy()
    images[1], labels[1] = 1 - images[1], 1 - labels[1]
    test = {"test_images": 1 - TEST_IMAGES, "test_labels": 1 - TEST_LABELS}
    poisoned = {"train_images": images, "train_labels": labels} | test
    make(tmp_path, name, dataclasses.replace(STACKS, **poisoned))
    network = f"work/{name}/network.safetensors"
    assert (tmp_path / network).read_bytes() == (made / network).read_bytes()
    assert record_of(tmp_path, name)["scores"] != record_of(made, name)["scores"]
    # What it does train on does reach it.
    other = dataclasses.replace(STACKS, train_images=1 - IMAGES)
    (tmp_path / "other").mkdir()
    make(tmp_path / "other", name, other)
    assert (tmp_path / "other" / network).read_bytes() != (made / network).read_bytes()


@pytest.mark.parametrize("fold", [0, 1, 2, 5])
def test_what_is_held_out_reaches_neither_tiles_nor_weight_maps(
    fold, tmp_path, monkeypatch
):
    seen = []

    class Spy(TileSampler):
        def __init__(self, images, labels, weights, *rest):
            seen.append((images, labels))
            super().__init__(images, labels, weights, *rest)

    def weights(labels, *rest):
        seen.append((None, labels))
        return weight_map(labels, *rest)

    monkeypatch.setattr(steps, "TileSampler", Spy)
    monkeypatch.setattr(examples, "weight_map", weights)
    text = TABLE.replace("folds = [1, 2]", f"folds = [{fold}]")
    make(tmp_path, f"tiny/plain/{fold}-0", text=text)
    training = [z for z in range(5) if z != fold - 1]
    (_, weighed), (images, labels) = seen
    np.testing.assert_array_equal(weighed, LABELS[training])
    np.testing.assert_array_equal(labels, LABELS[training])
    np.testing.assert_array_equal(images, IMAGES[training])


# The book's table, end to end.


def tiny(run):
    """A run of the book's table, its own changes kept, of a size for a test."""
    changes = {
        "base_channels": run.config.base_channels // 4,
        "depth": 1,
        "tile": {444: TILE, 256: 24}[run.config.tile],
        "steps": 3,
        "watch_at": (1,),
        "precision": "float32",
        "held_out": (1,),
        "device": "cpu",
    }
    config = dataclasses.replace(run.config, **changes)
    return run._replace(config=config, scored=config.held_out)


def test_every_variant_of_the_book_is_made(tmp_path):
    runs = [
        tiny(run)
        for run in read_table(REAL, "quarter-adam-2500/*/2-0")
        if run.variant not in ("interleaved", "best-slow-ema")  # other slices, decay
    ]
    names = run_table(runs, STACKS, tmp_path / "work", tmp_path / "results", False)
    assert names == [run.name for run in runs]
    networks = set()
    for run in runs:
        record = tmp_path / "results" / run.name
        found = figures(record, run.versions, 0.5)
        assert 0 <= found["pixel_error"] <= 1
        scores = json.loads((record / "scores.json").read_text())
        assert scores["slices"] == list(run.scored)
        held_out, trained = set(run.config.held_out), set(scores["training"]["slices"])
        assert held_out | trained == set(range(5))
        assert not held_out & trained
        networks.add(
            (tmp_path / "work" / run.name / "network.safetensors").read_bytes()
        )
        arguments = network_of(tmp_path, run.name).arguments
        assert arguments["padding"] == ("same" if run.variant == "padded" else "valid")
        assert arguments["batch_norm"] == (run.variant == "batch-norm")
    # What is changed changes what is learned.
    assert len(networks) == len(runs)


def test_a_run_on_one_image_is_scored_on_its_fold_alone(tmp_path):
    text = TABLE.replace("[variants.wide]", "[variants.wide]\nimages = 1")
    only = "tiny/wide/1-0"
    run_table(
        table(tmp_path, text, only), STACKS, tmp_path / "work", tmp_path, progress=False
    )
    record = json.loads((tmp_path / only / "scores.json").read_text())
    assert record["slices"] == [0]
    (trained,) = record["training"]["slices"]
    network = load_network(tmp_path / "work" / only / "network.safetensors")
    expected = evaluate(LABELS[[trained]], predict(network, IMAGES[[trained]]))
    pixel_error = record["training"]["figures"]["pixel_error"]["value"]
    assert pixel_error == expected.pixel_error
    assert [path.name for path in (tmp_path / only / "masks").iterdir()] == ["00.png"]
