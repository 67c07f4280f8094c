"""Compiled programs that notice when a function they were made from is replaced.

`jax.jit` identifies a program by the function it was given and the shapes of its arguments. It does not see that a
function further down has been replaced, say the loss (`toy.methods.method.sae_loss = mine`) or the `sample` of a source
class, so the old program would go on running and silently give the old numbers.
"""

import functools
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import fields, is_dataclass
from types import FunctionType, ModuleType
from typing import Any, Generic, TypeVar

import jax

T = TypeVar("T")
_OWN = ("toy.", "experiments.")
_KNOWN = (
    "toy",
    "builtins",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "numpy",
    "typing",
    "types",
)  # packages whose classes do not change


class Compiled(Generic[T]):
    """`jax.jit` of a function, with a separate program for every state of the functions that it may call.

    These are the functions of all modules of this project that the function's module imports, directly or not, and
    those of the classes of its arguments and of their modules. Putting an old function back brings back its program.
    """

    def __init__(self, function: Callable[..., T], **jit: Any) -> None:
        functools.update_wrapper(self, function)
        self._function, self._jit = function, jit
        self._programs: dict[Hashable, Any] = {}
        self._n_forgotten = 0

    def __call__(self, *args: Any, **kwargs: Any) -> T:
        return self._program(*args, *kwargs.values())(*args, **kwargs)

    def lower(self, *args: Any, **kwargs: Any) -> Any:
        """The method of the same name of a `jax.jit` function."""
        return self._program(*args, *kwargs.values()).lower(*args, **kwargs)

    @property
    def n_compiled(self) -> int:
        """The number of programs that have been compiled so far."""
        return self._n_forgotten + self.n_held

    @property
    def n_held(self) -> int:
        """The number of programs that are kept."""
        return sum(program._cache_size() for program in self._programs.values())

    def forget(self) -> None:
        """Drops the programs. Each takes some hundred mappings of memory, of which Linux gives a process 65,530."""
        self._n_forgotten += self.n_held
        for program in self._programs.values():
            program.clear_cache()

    def _program(self, *arguments: Any) -> Any:
        key = tuple(_functions(self._modules)), tuple(_functions_of(arguments))
        if key in self._programs:
            return self._programs[key]

        f = self._function  # a copy, since `jax.jit` shares the programs of one function
        function = FunctionType(f.__code__, f.__globals__, f.__name__, f.__defaults__, f.__closure__)
        function.__kwdefaults__ = f.__kwdefaults__
        functools.update_wrapper(function, f)
        return self._programs.setdefault(key, jax.jit(function, **self._jit))  # another thread may have been first

    @functools.cached_property
    def _modules(self) -> list[ModuleType]:
        """The function's module and all modules of this project that it imports, directly or not."""
        found = {self._function.__module__: sys.modules[self._function.__module__]}
        waiting = list(found.values())
        while waiting:
            for value in list(vars(waiting.pop()).values()):  # another thread may import into it
                name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
                if isinstance(name, str) and name.startswith(_OWN) and name not in found and name in sys.modules:
                    found[name] = sys.modules[name]
                    waiting.append(found[name])
        return [found[name] for name in sorted(found)]


def compiled(**jit: Any) -> Callable[[Callable[..., T]], Compiled[T]]:
    """A decorator that makes a function `Compiled`, with the arguments of `jax.jit`."""
    return lambda function: Compiled(function, **jit)


def _functions(modules: list[ModuleType]) -> Iterator[Any]:
    """Everything callable in the modules at this moment, and the methods of their classes."""
    for module in modules:
        for value in list(vars(module).values()):
            if callable(value) and value.__hash__ is not None:
                yield value
            if isinstance(value, type) and value.__module__ == module.__name__:
                yield from [method for method in vars(value).values() if isinstance(method, FunctionType)]


def _functions_of(arguments: tuple[Any, ...]) -> Iterator[Any]:
    """The functions of those classes of the arguments that a user may have defined, and of their modules."""
    for kind in dict.fromkeys(parent for argument in arguments for parent in _classes(argument)):
        if kind.__module__.partition(".")[0] in _KNOWN:
            continue
        yield from [value for value in vars(kind).values() if callable(value)]
        module = sys.modules.get(kind.__module__)
        yield from [value for value in vars(module).values() if isinstance(value, FunctionType)] if module else ()


def _classes(value: Any) -> Iterator[type]:
    """The classes of a value and of what it holds, since a source may be wrapped in another."""
    yield from type(value).__mro__
    inside: Iterable[Any] = ()
    if isinstance(value, dict | tuple | list):
        inside = value.values() if isinstance(value, dict) else value
    if is_dataclass(value) and type(value).__module__.partition(".")[0] not in _KNOWN:
        inside = [getattr(value, field.name, None) for field in fields(value)]
    for part in inside:
        yield from _classes(part)
