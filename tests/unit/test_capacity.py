"""The arithmetic of `mesh doctor --rate`."""

from dataclasses import replace

import pytest

from mesh.cli.capacity import Load, predict

A_DAY = Load(tasks_per_s=10, value_bytes=0, result_ttl_s=86_400, stream_bytes_max=4 * 2**30, full_at=0.9, replicas=1)


def test_as_many_results_are_kept_as_come_in_their_time_to_live() -> None:
    prediction = predict(A_DAY)

    assert prediction.kept_results == 864_000
    assert prediction.memory_bytes == 864_000 * 700
    assert prediction.stream_bytes == 864_000 * (198 + 154)
    assert prediction.disk_bytes == pytest.approx(864_000 * ((198 + 154) * 1.8 + 66))
    assert prediction.restart_s == pytest.approx(0.864 * 1.7)
    assert prediction.full_after_s is None


def test_everything_grows_with_the_rate() -> None:
    one, ten = predict(A_DAY), predict(replace(A_DAY, tasks_per_s=100))

    assert ten.kept_results == pytest.approx(10 * one.kept_results)
    assert ten.memory_bytes == pytest.approx(10 * one.memory_bytes)
    assert ten.disk_bytes == pytest.approx(10 * one.disk_bytes)


def test_a_value_costs_its_bytes_and_those_of_its_task_on_disk_and_none_in_memory() -> None:
    bare, laden = predict(A_DAY), predict(replace(A_DAY, value_bytes=1_000))

    assert laden.disk_bytes - bare.disk_bytes == pytest.approx(864_000 * 1_000 * 1.8)
    assert laden.memory_bytes == bare.memory_bytes


def test_a_stream_that_fills_is_told_with_the_time_until_it_refuses_tasks() -> None:
    load = replace(A_DAY, tasks_per_s=1_000)

    prediction = predict(load)

    assert prediction.full_after_s == pytest.approx(0.9 * 4 * 2**30 / (1_000 * (198 + 154)))
    assert prediction.full_after_s < load.result_ttl_s


def test_a_stream_without_a_limit_never_fills() -> None:
    assert predict(replace(A_DAY, tasks_per_s=1e6, stream_bytes_max=-1)).full_after_s is None


def test_nothing_submitted_needs_nothing() -> None:
    prediction = predict(replace(A_DAY, tasks_per_s=0))

    assert (prediction.kept_results, prediction.memory_bytes, prediction.full_after_s) == (0, 0, None)
