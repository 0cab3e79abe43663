"""Background jobs for Python, kept in PostgreSQL."""

from .background_job import BackgroundJob
from .backoff import Backoff, Exponential, Fixed, Linear
from .config import QueueConfig, RunnerConfig
from .current import CurrentJob, current_job
from .errors import (
    Cancel,
    ConfigurationError,
    Discard,
    FailedJobsError,
    InvalidJobError,
    MigrationError,
    RegistrationError,
    RunnerError,
    Snooze,
    StorageError,
    StorageRejectedError,
    StorageUnavailableError,
    StorageUnusableError,
    UnsupportedConnectionError,
    WorkersError,
)
from .handle import RunnerHandle, RunnerThread
from .hiding import Secret
from .job import ClaimedJob, JobRecord, JobState, Priority
from .migrations import migrate
from .roles import apply_roles
from .runner import Runner
from .runtime.failure import keep_passwords_out as _keep_passwords_out
from .sentry import install as _install_sentry

__version__ = "0.1.0"

_install_sentry()
_keep_passwords_out()

__all__ = [
    "BackgroundJob",
    "Backoff",
    "Cancel",
    "ClaimedJob",
    "ConfigurationError",
    "CurrentJob",
    "Discard",
    "Exponential",
    "FailedJobsError",
    "Fixed",
    "InvalidJobError",
    "JobRecord",
    "JobState",
    "Linear",
    "MigrationError",
    "Priority",
    "QueueConfig",
    "RegistrationError",
    "Runner",
    "RunnerConfig",
    "RunnerError",
    "RunnerHandle",
    "RunnerThread",
    "Secret",
    "Snooze",
    "StorageError",
    "StorageRejectedError",
    "StorageUnavailableError",
    "StorageUnusableError",
    "UnsupportedConnectionError",
    "WorkersError",
    "apply_roles",
    "current_job",
    "migrate",
]
