"""Choose where MLflow writes: tracking URI, local database, experiment and artifact folder.

MLflow is imported when a store is opened, never with this module, so that the package works without it.
"""

import logging
import os
import re
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.paths import project_root

logger = logging.getLogger(__name__)

DATABASE_NAME = "mlflow.db"
_SQLITE = "sqlite:///"
_SQLITE_SUFFIXES = (".db", ".sqlite", ".sqlite3")
_SQLITE_MAGIC = b"SQLite format 3\x00"
_DISABLED = ("", "off")
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}  # seconds


def sqlite_uri(path: Path) -> str:
    """Return the URI of an SQLite database.

    MLflow makes the parent folder of the URI's path without undoing its quotes, so only what would end the path is
    quoted: ``My Work`` stays ``My Work``, and no folder ``My%20Work`` appears next to it.

    Example:
        >>> sqlite_uri(Path("/My Work/mlflow.db"))
        'sqlite:////My Work/mlflow.db'
    """
    return _SQLITE + re.sub("[%?#]", lambda sign: f"%{ord(sign[0]):02X}", path.absolute().as_posix())


def tracking_uri() -> str:
    """Return the default tracking URI.

    It is the environment variable ``MLFLOW_TRACKING_URI``, else ``mlflow.db`` in the project's folder, which
    is where a bare ``mlflow ui`` started there looks.

    Example:
        In a bundle configuration: ``"tracking_uri": "$nucsam_monai.handlers.tracking_uri()"``.
    """
    return os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(project_root() / DATABASE_NAME)


def resolve_tracking_uri(location: str | Path | None) -> str | None:
    """Turn a user's tracking store into a URI that MLflow accepts.

    Args:
        location: a URI, a path of an SQLite database (``x.db``), a folder (its database is ``mlflow.db``), or
            ``None``, ``""`` or ``"off"`` for no tracking. Relative paths are taken from the working
            directory.

    Returns:
        The URI, with an absolute path for SQLite, or ``None`` where tracking is off.

    Raises:
        ConfigurationError: a file store (MLflow 3.13 and later refuse it), a file that is not an SQLite database,
            or text that is neither a path nor a URI.

    Example:
        >>> resolve_tracking_uri("/data/runs.db")
        'sqlite:////data/runs.db'
    """
    text = "" if location is None else str(location).strip()
    if text.lower() in _DISABLED:
        return None
    if text.startswith(_SQLITE) and "?" not in text:
        return sqlite_uri(_sqlite_file(Path(unquote(text.removeprefix(_SQLITE))), text))
    if text.startswith("file:"):
        raise ConfigurationError(
            f"tracking_uri '{text}': MLflow no longer writes to plain folders. "
            "Give a database, for example sqlite:///mlflow.db, or the address of an MLflow server."
        )
    if "://" in text or text == "databricks":
        return text
    if re.match(r"[A-Za-z][\w+.-]+:", text):
        raise ConfigurationError(
            f"tracking_uri '{text}': neither a path nor a complete URI. "
            "Expected for example sqlite:////folder/mlflow.db or http://host:5000."
        )
    path = Path(text).expanduser()
    if path.is_dir() or (not path.suffix and not path.exists()):
        path = path / DATABASE_NAME
    elif not path.exists() and path.suffix not in _SQLITE_SUFFIXES:
        raise ConfigurationError(
            f"tracking_uri '{text}': a database file ends with {', '.join(_SQLITE_SUFFIXES)}. "
            "Rename it, give a folder, or give the address of an MLflow server."
        )
    return sqlite_uri(_sqlite_file(path, text))


def connect(uri: str) -> Any:
    """Open the store at a resolved URI and return its ``mlflow.MlflowClient``.

    A missing SQLite database is made first, complete or not at all, also where several processes try at once. A server
    that does not answer is given up after seconds; MLflow's own settings would take minutes for every request.

    Raises:
        ConfigurationError: the store can't be opened (no server there, a database of another MLflow version).
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    if uri.startswith("http"):
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
    try:
        database = sqlite_path(uri)
        if database is not None and not database.exists():
            create_database(database)
        return mlflow.MlflowClient(tracking_uri=uri)
    except (MlflowException, OSError) as error:
        raise ConfigurationError(
            f"tracking_uri '{uri}': MLflow can't open it: {error} "
            "Correct it, or pass --tracking_uri off to continue without tracking."
        ) from error


def create_database(database: Path) -> None:
    """Make a new SQLite tracking database with MLflow's tables.

    The tables are made in a temporary file that is then linked to the final name. Linking fails where the
    name is taken, so of several processes the first one wins and all use the same complete database.
    """
    import mlflow

    database.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{database.stem}-", dir=database.parent, ignore_cleanup_errors=True
    ) as folder:
        temporary = Path(folder) / database.name
        mlflow.MlflowClient(tracking_uri=sqlite_uri(temporary))
        try:
            os.link(temporary, database)
        except FileExistsError:
            logger.debug("%s: made by another process meanwhile.", database)
        except OSError:  # a file system without hard links
            if not database.exists():
                temporary.rename(database)


def experiment_id(client: Any, experiment: str, uri: str) -> str:
    """Return the id of an experiment, creating it if it is missing.

    A new experiment in a local database keeps its artifacts in ``mlruns/<experiment>`` next to the database; a
    server decides for itself.

    Raises:
        ConfigurationError: the name can't be a folder, or the experiment was deleted.
    """
    from mlflow.exceptions import MlflowException

    if any(part in ("", ".", "..") for part in experiment.split("/")):
        raise ConfigurationError(f"experiment '{experiment}': expected a name such as 'nucsam/unsam'.")
    found = client.get_experiment_by_name(experiment)
    if found is None:
        database = sqlite_path(uri)
        location = None if database is None else (database.parent / "mlruns" / experiment).as_uri()
        try:
            return str(client.create_experiment(experiment, artifact_location=location))
        except MlflowException as error:
            found = client.get_experiment_by_name(experiment)  # another process was faster
            if found is None:
                raise ConfigurationError(f"experiment '{experiment}' in {uri}: {error}") from error
    if found.lifecycle_stage != "active":
        raise ConfigurationError(
            f"experiment '{experiment}' in {uri} was deleted. Restore it with "
            f"'mlflow experiments restore --experiment-id {found.experiment_id}' or name another one."
        )
    return str(found.experiment_id)


def sqlite_path(uri: str) -> Path | None:
    """Return the absolute path of a local database, ``None`` for any other store."""
    if not uri.startswith(_SQLITE):
        return None
    return Path(unquote(uri.removeprefix(_SQLITE).split("?")[0])).absolute()


def _sqlite_file(path: Path, given: str) -> Path:
    """Return ``path`` if a database is or can be there."""
    if path.is_dir():
        raise ConfigurationError(
            f"tracking_uri '{given}': {path} is a folder. Add a file name such as {DATABASE_NAME}."
        )
    if path.is_file():
        with path.open("rb") as file:
            first_bytes = file.read(len(_SQLITE_MAGIC))
        if first_bytes not in (b"", _SQLITE_MAGIC):
            raise ConfigurationError(
                f"tracking_uri '{given}': {path} is not an SQLite database "
                f"(first bytes: {first_bytes[:8].hex()}). Give another path."
            )
    return path
