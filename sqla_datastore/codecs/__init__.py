"""The registry of codecs: which one takes a value, which one reads a node.

A codec is found by a value's exact type; a subclass is never stored as its base, because it would
come back as something else. The module of a library is imported when a value or a node first needs
it, so importing this package imports neither NumPy nor pandas nor pyarrow.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from enum import Enum
from typing import Any, TypeVar

from ..exceptions import UnsupportedTypeError
from ._registered import ARROW_TYPES, ENUMS, NAMEDTUPLES
from .protocol import Codec, Decoder, Description, Encoder, Payload, StoredBytes

_EnumType = TypeVar("_EnumType", bound=type[Enum])
_TupleType = TypeVar("_TupleType", bound=type[tuple[Any, ...]])
_ArrowType = TypeVar("_ArrowType", bound=type[Any])

__all__ = ["Codec", "Decoder", "Description", "Encoder", "Payload", "StoredBytes"]

# the first part of a codec's name -> the module of this package that has it in its CODECS
_MODULES_BY_PREFIX = {
    "plain": "plain",
    "numpy": "numpy",
    "pandas": "pandas",
    "arrow": "arrow",
    "capsule": "capsule",
    "geopandas": "geopandas",
    "pillow": "pillow",
    "scipy": "scipy",
    "torch": "torch",
    "xarray": "xarray",
}

# the first part of a type's module -> the same; types of the standard library are in `plain`
_MODULES_BY_LIBRARY = {
    "numpy": "numpy",
    "pandas": "pandas",
    "pyarrow": "arrow",
    "polars": "capsule",
    "geopandas": "geopandas",
    "PIL": "pillow",
    "scipy": "scipy",
    "torch": "torch",
    "xarray": "xarray",
}


class _Registry:
    """Codecs by name and by type; lookups take no lock, additions do."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._modules: frozenset[str] = frozenset()
        self._by_name: dict[str, Codec] = {}
        self._by_type: dict[type, Codec] = {}
        self._registered: tuple[Codec, ...] = ()
        self._built_in: tuple[Codec, ...] = ()

    def find(self, value: object) -> Codec | None:
        """Return the codec of a value's exact type, else the first that takes it."""
        cls = type(value)
        if (codec := self._by_type.get(cls)) is not None:
            return codec
        for module in _modules_of(cls):
            self._load(module)
        if (codec := self._by_type.get(cls)) is not None:
            return codec
        candidates = (*self._registered, *self._built_in)
        return next((codec for codec in candidates if codec.takes(value)), None)

    def named(self, name: str) -> Codec:
        """Return the codec of a name, importing its module if need be."""
        if (codec := self._by_name.get(name)) is not None:
            return codec
        module = _MODULES_BY_PREFIX.get(name.partition(".")[0])
        if module is not None:
            self._load(module)
        return self._by_name[name]

    def register(self, codec: Codec) -> None:
        """Add a third party's codec; its types come before ours."""
        if codec.name.partition(".")[0] in _MODULES_BY_PREFIX:
            raise ValueError(f"codec name {codec.name!r} is reserved; use a prefix of your own")
        with self._lock:
            self._refuse_taken(codec)
            self._by_name[codec.name] = codec
            self._by_type.update(dict.fromkeys(codec.types(), codec))
            self._registered = (codec, *self._registered)

    def _refuse_taken(self, codec: Codec) -> None:
        if codec.name in self._by_name:
            raise ValueError(f"codec name {codec.name!r} is taken")
        for cls in codec.types():
            other = self._by_type.get(cls)
            if other in self._registered:
                raise ValueError(f"type {cls.__qualname__!r} is taken by codec {other.name!r}")

    def _load(self, module: str) -> None:
        """Import a module of this package outside the lock, add its codecs once under it."""
        if module in self._modules:
            return
        # Not under the lock: another thread may hold the module's import lock and wait for ours to
        # register a codec. Then both would wait forever.
        name = module if "." in module else f"{__name__}.{module}"
        codecs: tuple[Codec, ...] = importlib.import_module(name).CODECS
        with self._lock:
            if module in self._modules:
                return
            for codec in codecs:
                self._by_name[codec.name] = codec
                for cls in codec.types():
                    # a third party's codec may have taken the type before this module was imported
                    self._by_type.setdefault(cls, codec)
            self._built_in = (*self._built_in, *codecs)
            self._modules |= {module}


def _modules_of(cls: type) -> Iterator[str]:
    """Yield the modules of this package that may take a type or know why not."""
    yield "plain"
    libraries = {base.__module__.partition(".")[0] for base in cls.__mro__}
    yield from (_MODULES_BY_LIBRARY[name] for name in sorted(libraries & {*_MODULES_BY_LIBRARY}))
    if libraries.isdisjoint(_MODULES_BY_LIBRARY) and hasattr(cls, "__arrow_c_stream__"):
        yield "capsule"


_registry = _Registry()


def find_codec(value: object) -> Codec | None:
    """Return the codec that takes a value.

    Args:
        value: any object; its exact type decides, subclasses are offered to `Codec.takes`.

    Returns:
        The codec, or None where none takes it; `advice.advice` says what to do then.
    """
    return _registry.find(value)


def codec_named(name: str) -> Codec:
    """Return the codec of a stored name.

    Args:
        name: for example ``numpy.array``.

    Returns:
        The codec.

    Raises:
        KeyError: no codec of this name is registered.
        ImportError: the library that the codec needs is not installed.
    """
    return _registry.named(name)


def announce_codecs(prefix: str, library: str, module: str) -> None:
    """Name a module of another room that has CODECS; imported when they are first needed.

    Args:
        prefix: the first part of their names.
        library: the first part of the module that their types say they are of.
        module: its full name.
    """
    _MODULES_BY_PREFIX[prefix] = _MODULES_BY_LIBRARY[library] = module


def register_codec(codec: Codec) -> None:
    """Add a codec, for the whole process.

    Args:
        codec: an instance. Its types win over those of the codecs that come with this library.

    Raises:
        ValueError: its name or one of its types is taken, or its name's prefix is reserved.
    """
    _registry.register(codec)


def register_enum(cls: _EnumType, name: str | None = None) -> _EnumType:
    """Let members of an Enum be stored; usable as a class decorator.

    Objects hold the registered name, never an import path: the reading program registers its own
    class under that name. Members are stored by name, the combinations of a Flag by value.

    Args:
        cls: the Enum class.
        name: the name in objects, by default the class's qualified name.

    Returns:
        `cls` itself.

    Raises:
        ValueError: the name is taken by another class, or the class has another name.
    """
    return ENUMS.add(cls, name)


def register_namedtuple(cls: _TupleType, name: str | None = None) -> _TupleType:
    """Let values of a namedtuple class be stored; usable as a class decorator.

    As for `register_enum`, objects hold the registered name, and the fields with it: a reading
    program whose class has other fields is told so. Classes of `typing.NamedTuple` are taken, too.

    Args:
        cls: the class.
        name: the name in objects, by default the class's qualified name.

    Returns:
        `cls` itself.

    Raises:
        ValueError: the name is taken by another class, or the class has another name.
        UnsupportedTypeError: it is no namedtuple class.
    """
    if not (isinstance(cls, type) and issubclass(cls, tuple) and hasattr(cls, "_fields")):
        raise UnsupportedTypeError(f"{cls!r} is no namedtuple class; pass the class itself")
    return NAMEDTUPLES.add(cls, name)


def register_arrow_type(cls: _ArrowType) -> _ArrowType:
    """Let values of an Arrow extension type be stored; usable as a class decorator.

    Types of pyarrow itself and those of pandas' periods and intervals need no registration. For
    any other, this says that ``cls.__arrow_ext_deserialize__`` may be given what objects hold,
    which strangers may have written: it must not run what that names, as a pickle would. Arrow
    needs ``pyarrow.register_extension_type`` besides: where it does not know the type, values come
    back as their storage, with name and metadata of the type in the metadata of their field.

    Args:
        cls: a subclass of ``pyarrow.ExtensionType``.

    Returns:
        `cls` itself.

    Raises:
        UnsupportedTypeError: it is no class of extension types.
    """
    if not (isinstance(cls, type) and hasattr(cls, "__arrow_ext_deserialize__")):
        raise UnsupportedTypeError(f"{cls!r} is no class of extension types; pass the class itself")
    ARROW_TYPES.add(cls)
    return cls
