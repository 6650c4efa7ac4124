"""A typed name for what can be asked for, whoever handles it."""

from typing import Any, Generic

from typing_extensions import TypeVar

from contracts.errors import ContractError
from contracts.subjects import check_capability
from mesh.errors import SetupError
from mesh.payload import Shape

I = TypeVar("I", default=Any)  # noqa: E741  # the pair reads as input and output
O = TypeVar("O", default=Any)  # noqa: E741


class Reference(Generic[I, O]):
    """A capability's name with its types, for callers who do not have its handler at hand.

    Raises:
        SetupError: the name is illegal, or a type cannot travel.
    """

    def __init__(self, name: str, *, takes: type[I] | Shape[I], returns: type[O] | Shape[O]) -> None:
        try:
            self.name = check_capability(name)
            self.input: Shape[I] = takes if isinstance(takes, Shape) else Shape(takes)
            self.output: Shape[O] = returns if isinstance(returns, Shape) else Shape(returns)
        except ContractError as error:
            raise SetupError(str(error)) from error

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.input!r} -> {self.output!r})"
