"""Where nothing is traced nothing is imported, recorded or needed."""

import subprocess
import sys
import textwrap

import pytest

from contracts.subjects import Identity
from contracts.task import Task
from mesh.settings import Settings
from mesh.telemetry import tracing


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


BLOCKED = """
    import sys

    class Blocked:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "opentelemetry":
                raise ModuleNotFoundError(f"no {name}", name=name)

    sys.meta_path.insert(0, Blocked())
"""


def test_without_the_extra_everything_but_export_works() -> None:
    program = (
        BLOCKED
        + """
    import mesh, mesh.cli.main, mesh.peer, mesh.sync, mesh.telemetry.logs
    from mesh.errors import SetupError
    from mesh.settings import Settings
    from mesh.telemetry import tracing

    assert tracing.started(Settings(), service="s") is tracing.OFF
    assert tracing.started(Settings(), service="s", provider=object()) is tracing.OFF
    assert tracing.exemplar() is None
    try:
        tracing.started(Settings(traces="otlp"), service="s")
    except SetupError as error:
        print(error)
    """
    )

    assert "pip install 'starling-mesh[otel]'" in run(program)


def test_a_process_that_set_no_provider_spends_nothing_on_opentelemetry() -> None:
    program = """
    import sys
    import mesh.client, mesh.peer
    from mesh.settings import Settings
    from mesh.telemetry import tracing

    assert tracing.started(Settings(), service="s") is tracing.OFF
    print("opentelemetry.trace" in sys.modules, "opentelemetry.sdk" in sys.modules)
    """

    assert run(program) == "False False"


def test_the_provider_of_the_process_is_used_where_it_has_one() -> None:
    program = """
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from mesh.settings import Settings
    from mesh.telemetry import tracing

    assert tracing.started(Settings(), service="s") is tracing.OFF
    trace.set_tracer_provider(TracerProvider())
    found = tracing.started(Settings(), service="s")
    assert found.provider is trace.get_tracer_provider()
    assert tracing.started(Settings(traces="otlp"), service="s").provider is found.provider
    assert tracing.started(Settings(traces="off"), service="s") is tracing.OFF
    trace._TRACER_PROVIDER = trace.NoOpTracerProvider()
    assert tracing.started(Settings(), service="s") is tracing.OFF
    """

    run(program)


def test_an_exporter_is_the_process_s_own_provider_named_as_the_environment_or_the_agents_say() -> None:
    program = """
    import os
    from opentelemetry import trace
    from mesh.settings import Settings
    from mesh.telemetry import tracing

    first = tracing.started(Settings(traces="otlp"), service="desk", instance="p1")
    second = tracing.started(Settings(traces="otlp"), service="other", instance="p2")
    assert first.provider is second.provider is trace.get_tracer_provider()
    told = first.provider.resource.attributes
    print(told["service.name"], told["service.instance.id"])
    """

    assert run(program) == "desk p1"
    assert run("import os; os.environ['OTEL_SERVICE_NAME'] = 'theirs'\n" + textwrap.dedent(program)) == "theirs p1"


def test_what_is_not_traced_takes_every_call() -> None:
    task = Identity("a", "b")
    with tracing.OFF.submit(task, Task(), "q", size=1) as span:
        span.tell({"a": 1})
        span.event("b")
        span.link("")
    tracing.OFF.run(task, "q", {}, {}).make_current()

    assert dict(span.headers) == {}
    assert span.traceparent == ""
    assert tracing.OFF.provider is None


def test_settings_name_the_ways_to_trace() -> None:
    with pytest.raises(ValueError, match="'off', 'auto' or 'otlp'"):
        Settings(traces="on")  # type: ignore[arg-type]
