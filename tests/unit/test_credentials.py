"""Files of keys and certificates that hold none: told by the setting's name, without what is in them."""

import logging
from pathlib import Path

import pytest

from mesh.bus.connection import Bus
from mesh.bus.options import NO_NEWS, client_options
from mesh.errors import SetupError
from mesh.settings import Settings


@pytest.mark.parametrize("field", ["nats_nkey_seed", "nats_creds", "nats_tls_ca"])
@pytest.mark.parametrize("content", ["", "SUA-hidden", "hidden: [yes]\n"])
def test_a_file_that_holds_something_else_is_named_and_not_shown(tmp_path: Path, field: str, content: str) -> None:
    path = tmp_path / "file"
    path.write_text(content)
    settings = Settings.model_validate({field: path})

    with pytest.raises(SetupError, match=f"MESH_{field.upper()} names") as told:
        Bus(settings, "test").options()

    assert "hidden" not in str(told.value)


def test_the_end_of_a_tls_connection_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    client_options({})
    client_options({})

    with caplog.at_level(logging.WARNING, logger="asyncio"):
        logging.getLogger("asyncio").warning(NO_NEWS)
        logging.getLogger("asyncio").warning("something else")

    assert caplog.messages == ["something else"]
