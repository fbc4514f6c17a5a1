"""The floors of the package: imports point downwards, without circles, and every file has a room."""

from tests import import_graph


def test_every_file_has_a_room():
    rooms = {name for floor in import_graph.FLOORS for name in floor}
    modules = import_graph.files()
    assert not [module for module in modules if import_graph.room(module) not in rooms | {"", "evaluation"}]
    loose = {module for module in modules if not import_graph.room(module)}
    assert loose <= set(import_graph.LOOSE)


def test_imports_point_downwards():
    upward = []
    for start, end in import_graph.imports():
        above, below = import_graph.room(start), import_graph.room(end)
        if above == below or not above or end == "version" or "evaluation" in (above, below):
            continue
        if not below or import_graph.floor(below) >= import_graph.floor(above):
            upward.append(f"{start} -> {end}")
    assert not upward


def test_no_circles():
    arrows = [arrow for arrow in import_graph.imports() if "__init__" not in arrow]
    assert not import_graph.circles(arrows)


def test_an_upward_import_and_a_circle_are_found():
    assert import_graph.floor("runtime") < import_graph.floor("audio") < import_graph.floor("cli")
    assert import_graph.circles([("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")]) == [["a", "b", "c"]]
    assert not import_graph.circles([("a", "b"), ("a", "c"), ("b", "c")])


def test_the_drawing_is_up_to_date():
    drawn = (import_graph.ROOT / "docs" / "architecture.svg").read_text()
    assert drawn == import_graph.drawing(), "run  python -m tests.import_graph"
