"""Registered names lead to classes; a wrong one says which were meant."""

import sys

import pytest
import threestudio
from threestudio import registry
from threestudio.extensions import ExtensionImportError, load_extension


@pytest.fixture
def names(monkeypatch):
    """An empty registry."""
    modules = {}
    monkeypatch.setattr(registry, "__modules__", modules)
    yield modules
    registry.failed_imports.pop("broken_toy", None)


def test_register_and_find(names):
    @threestudio.register("panda")
    class Panda:
        pass

    assert threestudio.find("panda") is Panda
    assert names == {"panda": Panda}


def test_stock_modules_are_registered():
    for name in ("no-material", "solid-color-background", "dummy-exporter"):
        assert threestudio.find(name)


def test_mixins_come_before_the_main_class(names):
    for name in ("main", "first", "second"):
        threestudio.register(name)(type(name, (), {"who": name, name: True}))
    found = threestudio.find("main:first,second")
    assert found.who == "first"
    assert [c.__name__ for c in found.__mro__[1:4]] == ["first", "second", "main"]


def test_a_name_registered_twice_says_who_has_it(names):
    threestudio.register("panda")(int)
    with pytest.raises(ValueError, match=r"Two modules want the name 'panda'.*int.*float"):
        threestudio.register("panda")(float)


@pytest.mark.parametrize("near", ["no-materials", "nomaterial", "no_material"])
def test_an_unknown_name_says_the_close_ones(near):
    with pytest.raises(KeyError, match="Close names: no-material"):
        threestudio.find(near)


def test_an_empty_name_says_that_a_type_is_missing():
    with pytest.raises(KeyError, match="type is empty"):
        threestudio.find("")


def test_an_unknown_name_mentions_failed_imports(names, tmp_path):
    (tmp_path / "__init__.py").write_text("import threestudio\n1 / 0\n")
    with pytest.raises(ExtensionImportError, match="broken_toy"):
        load_extension("broken_toy", tmp_path)
    assert "broken_toy" not in sys.modules
    with pytest.raises(KeyError, match="broken_toy: ZeroDivisionError: division by zero"):
        threestudio.find("toy-system")


def test_typecheck_checks_an_extensions_shapes(tmp_path):
    folder = tmp_path / "a-folder-with-hyphens"
    folder.mkdir()
    (folder / "__init__.py").write_text("from . import maths\n")
    (folder / "maths.py").write_text(
        "from jaxtyping import Float\nfrom torch import Tensor\n"
        "def total(x: Float[Tensor, 'N 3']) -> Float[Tensor, '']:\n    return x.sum()\n"
    )
    import torch

    toy = load_extension("typechecked_toy", folder, typecheck=True)
    assert toy.maths.total(torch.ones(2, 3)) == 6
    with pytest.raises(TypeError, match=r"(?s)total.*'x'.*N 3"):
        toy.maths.total(torch.ones(2, 4))
