"""What a running job can ask about itself."""

from __future__ import annotations

import pytest

from workers import ClaimedJob, CurrentJob, WorkersError, current_job


def test_its_representation_says_which_it_is() -> None:
    job = ClaimedJob(17, "send_email", "emails", 0, "{}", 1, 0, False, 3)
    assert repr(CurrentJob(job, 5)) == "<CurrentJob 17 send_email, attempt 2, queue emails>"


def test_outside_of_a_job_there_is_none() -> None:
    with pytest.raises(WorkersError, match="for the code of a running job"):
        current_job()
