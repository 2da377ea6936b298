"""Each page of the book and its recording: equal, executed, clean, runnable."""

import subprocess
import sys

import nbformat
import pytest
import record

PAGES = record.pages()


def recording(name):
    path = record.NOTEBOOKS / f"{name}.ipynb"
    assert path.exists(), f"run: python book/record.py {name}"
    return nbformat.read(path, as_version=4)


def cells(notebook):
    return [(cell.cell_type, cell.source, cell.metadata) for cell in notebook.cells]


def test_there_are_pages():
    assert PAGES


def test_each_recording_has_a_page():
    assert {path.stem for path in record.NOTEBOOKS.glob("*.ipynb")} == set(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_page_and_recording_are_equal(name):
    assert cells(recording(name)) == cells(record.read_page(name)), (
        f"{name}.md has changed since; run: python book/record.py {name} "
        "(with --text if no code has changed)"
    )


@pytest.mark.parametrize("name", PAGES)
def test_the_first_cell_installs_from_the_setting(name, tmp_path, monkeypatch):
    page = (record.BOOK / f"{name}.md").read_text("utf-8")
    monkeypatch.setattr(record, "BOOK", tmp_path)
    (tmp_path / f"{name}.md").write_text(page, "utf-8")
    record.put_setup(name)
    assert (tmp_path / f"{name}.md").read_text("utf-8") == page, (
        f"run: python book/record.py --text {name}"
    )


@pytest.mark.parametrize("name", PAGES)
def test_recording_is_one_run_from_top_to_bottom(name):
    code = record.code_cells(recording(name))
    counts = [cell.execution_count for cell in code]
    assert counts == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]


@pytest.mark.parametrize("name", PAGES)
def test_recording_is_of_the_real_stacks(name):
    assert not record.on_stand_in(recording(name))


def test_a_run_on_the_stand_in_is_not_recorded(monkeypatch, tmp_path):
    def execute(notebook, environment):
        code = "from unet_lib import data; data.load_or_stand_in()"
        said = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        output = nbformat.v4.new_output("stream", text=said)
        record.code_cells(notebook)[0].outputs = [output]

    monkeypatch.setenv("UNET_BOOK_DATA", "synthetic")
    monkeypatch.setattr(record, "execute", execute)
    monkeypatch.setattr(record, "NOTEBOOKS", tmp_path)
    with pytest.raises(record.RecordingError, match="real stacks"):
        record.record(PAGES[0])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", PAGES)
def test_recording_is_small_and_free_of_this_machine(name):
    path = record.NOTEBOOKS / f"{name}.ipynb"
    assert path.stat().st_size <= record.LARGEST
    notebook = recording(name)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    for cell in record.code_cells(notebook):
        for output in cell.outputs:
            for text in record.texts(output):
                assert record.machine_path(text) is None
            assert record.WIDGET not in output.get("data", {})


@pytest.mark.parametrize("name", PAGES)
def test_lines_of_code_fit_the_page(name):
    for cell in record.code_cells(record.read_page(name)):
        for line in cell.source.splitlines():
            assert len(line) <= 80, line


@pytest.mark.notebooks
@pytest.mark.parametrize("name", PAGES)
def test_page_runs_on_the_synthetic_stand_in(name):
    command = [sys.executable, str(record.BOOK / "record.py"), "--check", name]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize(
    "text",
    [
        "read /home/ada/stacks/train-volume.tif",
        "'/tmp/ipykernel_12/1.py:3: UserWarning'",
        "C:\\Users\\ada",
        "<b>in</b> /Users/ada",
    ],
)
def test_an_absolute_path_is_seen(text):
    assert record.machine_path(text)


@pytest.mark.parametrize(
    "text",
    [
        "<table><tr><td>1/2</td></tr></table>",
        "https://downloads.imagej.net/ISBI-2012-challenge.zip",
        "../results/quarter/metrics.json and/or results/a/b",
        "V-Rand / V-Info / error",
        "<br/><img/>",
    ],
)
def test_other_slashes_are_let_be(text):
    assert record.machine_path(text) is None


def run_of(*sources):
    """A notebook of these code cells, executed and cleaned as record.py does it."""
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in sources]
    )
    record.name_cells(notebook)
    return notebook


def output_of(data):
    return nbformat.v4.new_output("display_data", data=data)


def test_a_control_is_dropped_where_a_picture_stands_for_it():
    notebook = run_of("slider")
    notebook.cells[0].outputs = [
        output_of({record.WIDGET: {}, "text/plain": "interactive(…)"}),
        output_of({record.WIDGET: {}, "text/html": "<input>", "text/plain": "-"}),
    ]
    record.clean(notebook)
    assert [output.data for output in notebook.cells[0].outputs] == [
        {"text/html": "<input>", "text/plain": "-"}
    ]


def test_a_control_alone_is_refused():
    notebook = run_of("slider")
    notebook.cells[0].outputs = [output_of({record.WIDGET: {}, "text/plain": "-"})]
    with pytest.raises(record.RecordingError, match="live control alone"):
        record.clean(notebook)


def test_a_path_in_an_output_is_refused():
    notebook = run_of("print(path)")
    notebook.cells[0].outputs = [
        nbformat.v4.new_output("stream", name="stdout", text="/home/ada/stacks\n")
    ]
    with pytest.raises(record.RecordingError, match="path of this machine"):
        record.clean(notebook)


def test_of_a_progress_bar_the_last_state_is_kept():
    assert record.after_carriage_returns("\r 10 %\r 50 %\r100 %\nend\r\n") == (
        "100 %\nend\n"
    )


def test_ids_of_cells_depend_on_their_text_alone():
    before = [cell.id for cell in run_of("a", "b", "b").cells]
    after = [cell.id for cell in run_of("new", "a", "b", "b").cells]
    assert len(set(before)) == 3
    assert after[1:] == before


def test_a_recording_that_is_too_large_is_refused_and_leaves_nothing(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(record, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(record, "LARGEST", 100)
    with pytest.raises(record.RecordingError, match="more than 100"):
        record.write(run_of("a" * 200), "page")
    assert list(tmp_path.iterdir()) == []
