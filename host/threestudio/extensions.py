"""Loading an extension: a package whose import registers its modules."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from threestudio.registry import close_names, failed_imports


class ExtensionImportError(ImportError):
    """An extension raised while it was imported; the cause carries the traceback."""


def load_extension(name: str, folder: Path | None = None, typecheck: bool = False) -> ModuleType:
    """Imports the extension `name`, from `folder` (a package's folder, whatever it is called) if
    one is given.

    `typecheck` checks the shapes and types in its signatures at every call (jaxtyping's import
    hook with typeguard).
    """
    if name in sys.modules:
        return sys.modules[name]
    if typecheck:
        from jaxtyping import install_import_hook
        from threestudio.utils import typechecking

        install_import_hook(name, f"{typechecking.__name__}.typechecked")
    try:
        if folder is None:
            return importlib.import_module(name)
        spec = importlib.util.spec_from_file_location(
            name, Path(folder) / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None and spec.loader is not None  # it is a Python file
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module
    except Exception as error:
        sys.modules.pop(name, None)
        failed_imports[name] = f"{type(error).__name__}: {error}"
        raise ExtensionImportError(
            f"The extension {name!r} cannot be imported ({error})."
        ) from error


def config_of(extension: str, given: str) -> str:
    """The path of a config: as given, or else where a loaded extension has it, in its folder or in
    the `configs` there.

    Raises:
        FileNotFoundError: a bare name that neither the working directory nor the extension has.
    """
    if Path(given).is_file():
        return given
    folders = [Path(place) for place in sys.modules[extension].__path__]
    for place in [*folders, *(folder / "configs" for folder in folders)]:
        if (place / given).is_file():
            return str(place / given)
    places = [folder / "configs" for folder in folders]  # a checkout holds trials' configs too
    names = [p.relative_to(place).as_posix() for place in places for p in place.rglob("*.yaml")]
    if len(Path(given).parts) == 1 and (near := close_names(given, names)):
        raise FileNotFoundError(f"There is no config {given!r}; {extension} has {', '.join(near)}.")
    return given
