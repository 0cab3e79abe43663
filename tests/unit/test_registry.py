"""Which class runs a job type."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import pytest

from workers import BackgroundJob, RegistrationError
from workers.registry import Registry


class First(BackgroundJob[Any]):
    job_name = "same"
    queue = "emails"

    async def run(self, ctx: Any) -> None: ...


class Second(BackgroundJob[Any]):
    job_name = "same"

    def run(self, ctx: Any) -> Awaitable[None]:
        raise NotImplementedError


def test_a_registered_class_is_found_by_its_name() -> None:
    registry = Registry()
    job_type = registry.register(First)
    assert registry.get("same") is job_type
    assert (job_type.job_class, job_type.queue, job_type.is_async) == (First, "emails", True)
    assert job_type.policy == First.policy()
    assert job_type.codec.decode("{}") == First()
    assert "same" in registry
    assert [*registry] == [job_type]
    assert len(registry) == 1


def test_an_unknown_name_is_none() -> None:
    assert Registry().get("unknown") is None
    assert "unknown" not in Registry()


def test_a_second_class_of_the_same_name_is_refused() -> None:
    registry = Registry()
    registry.register(First)
    with pytest.raises(RegistrationError, match=r"Second and .*First are both named 'same'"):
        registry.register(Second)
    assert registry.get("same") is not None
    # each registry is one runner's: another may know the other class
    assert Registry().register(Second).is_async is False


def test_registering_again_changes_nothing() -> None:
    registry = Registry()
    assert registry.register(First) is registry.register(First)
    assert len(registry) == 1


@pytest.mark.parametrize("stranger", [int, First(), "First", None])
def test_only_job_classes_are_registered(stranger: Any) -> None:
    with pytest.raises(RegistrationError, match="is no job class"):
        Registry().register(stranger)


def test_annotations_are_resolved_at_registration() -> None:
    class Odd(First):
        job_name = "odd"

        missing: Missing  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(RegistrationError, match=r"Odd\.missing: the name 'Missing'"):
        Registry().register(Odd)


def test_a_class_without_run_is_refused() -> None:
    class Base(BackgroundJob[Any]): ...

    with pytest.raises(RegistrationError, match="has no run method"):
        Registry().register(Base)  # type: ignore[type-abstract]
