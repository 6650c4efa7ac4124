"""The root of every Starling error, and the one that bytes or names can cause."""


class MeshError(Exception):
    """The root of everything Starling raises on purpose."""


class ContractError(MeshError, ValueError):
    """Bytes, a name or a value break the contract; repeating them cannot help.

    `path` names the offending field (`$.file.lines`), where there is one.
    """

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class NewerFormat(ContractError):
    """A record of a format this process does not read yet: leave it to a newer one."""
