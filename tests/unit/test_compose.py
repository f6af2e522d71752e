"""docker-compose.yml and the image against the code: commands, settings and paths that are really there."""

import importlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from celery.bin.celery import celery

from sagakit.cli import main
from sagakit.settings import Settings
from workers.config import ShopSettings

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
THEIRS = {"POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_DB"}
"""Variables of the images that are not ours."""


def _known_variables() -> set[str]:
    shop = {name.upper() for name in ShopSettings.model_fields}
    return shop | {f"SAGAKIT_{name.upper()}" for name in Settings.model_fields}


def _words(command: Any) -> list[str]:
    """A command as its words, whichever way it is written."""
    words = shlex.split(command) if isinstance(command, str) else [str(word) for word in command]
    if words[0] == "CMD-SHELL":
        return shlex.split(words[1].replace("$$", "$"))
    return words[1:] if words[0] == "CMD" else words


def _check_command(words: list[str]) -> None:
    """An entry point that exists, an application that exists, a command and options that exist."""
    program, *rest = words
    if program == "sagakit":
        assert rest[0] == "--app"
        _check_app(rest[1])
        command = main.console.commands[rest[2]]
        command.make_context(rest[2], rest[3:])
    elif program == "celery":
        assert rest[0] == "-A"
        _check_app(rest[1])
        known = {*celery.commands, "flower"}  # Flower's own entry point adds its command
        assert rest[2] in known
        if rest[2] != "flower":
            flags = {word.partition("=")[0] for word in rest[3:] if word.startswith("--")}
            of_command = celery.commands[rest[2]]
            options = {option for parameter in of_command.params for option in parameter.opts}
            assert flags <= options
    else:
        assert program in {"python", "pg_isready", "redis-cli", "redis-server"}, words


def _check_app(name: str) -> None:
    assert hasattr(importlib.import_module(name), "app")


def test_the_services_are_those_of_a_deployment() -> None:
    """Postgres, Redis, migration, worker, Flower."""
    assert set(SERVICES) == {"postgres", "redis", "migrate", "worker", "flower"}
    assert set(OURS) == {"migrate", "worker", "flower"}


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_commands_and_health_checks_exist(name: str) -> None:
    """Entry points, applications, commands and options are really there."""
    service = SERVICES[name]
    for command in (service.get("command"), service.get("healthcheck", {}).get("test")):
        if command is not None:
            _check_command(_words(command))


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_variables_are_real_settings(name: str) -> None:
    """No variable is set that nobody reads."""
    variables = set(SERVICES[name].get("environment", {}))
    assert variables <= (_known_variables() if name in OURS else THEIRS)


def test_our_services_know_broker_ledger_and_shop() -> None:
    """Each gets the three URLs, and they point to services of this file, under the users and databases made here."""
    databases = {SERVICES["postgres"]["environment"]["POSTGRES_DB"]}
    script = (ROOT / "deploy" / "postgres" / "databases.sql").read_text()
    databases |= set(re.findall(r"^CREATE DATABASE (\w+)", script, re.MULTILINE | re.IGNORECASE))
    user = SERVICES["postgres"]["environment"]["POSTGRES_USER"]
    for service in OURS.values():
        environment = service["environment"]
        assert environment["CELERY_BROKER_URL"].startswith("redis://redis:")
        for name in ("SAGAKIT_DATABASE_URL", "SHOP_DATABASE_URL"):
            match = re.fullmatch(
                r"postgresql\+psycopg://(\w+):\$\{(\w+):-\w+\}@(\w+)/(\w+)", environment[name]
            )
            assert match, environment[name]
            assert (match[1], match[3]) == (user, "postgres")
            assert match[4] in databases
        assert environment["SAGAKIT_DATABASE_URL"] != environment["SHOP_DATABASE_URL"]


def test_nothing_starts_before_what_it_needs() -> None:
    """The worker and Flower wait for the migration, the migration for Postgres; waited-for services tell health."""
    for name, service in SERVICES.items():
        for needed, how in service.get("depends_on", {}).items():
            assert needed in SERVICES, f"{name} waits for {needed}"
            if how["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[needed]
    for name in ("worker", "flower"):
        assert SERVICES[name]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"
    assert "postgres" in SERVICES["migrate"]["depends_on"]


def test_mounted_files_and_build_files_are_there() -> None:
    """Paths of this checkout exist; named volumes are declared."""
    volumes = set(COMPOSE["volumes"])
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert (ROOT / source).exists() if source.startswith(".") else source in volumes
    for service in OURS.values():
        assert (ROOT / service["build"]["context"] / service["build"]["dockerfile"]).is_file()


def _instructions(name: str) -> list[str]:
    joined = DOCKERFILE.replace("\\\n", " ")
    return [line.removeprefix(name).strip() for line in joined.splitlines() if line.startswith(f"{name} ")]


def test_the_image_copies_what_is_there_and_not_ignored() -> None:
    """Every COPY out of the checkout names a path that is in the build's context."""
    ignored = [
        line.strip().strip("/")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.strip() and not line.startswith(("#", "!"))
    ]
    for instruction in _instructions("COPY"):
        words = shlex.split(instruction)
        if words[0].startswith("--from"):
            continue
        for path in words[:-1]:
            assert (ROOT / path).exists(), path
            assert path.strip("/") not in ignored, path


def test_the_image_has_what_the_package_is_built_from() -> None:
    """Files that pyproject.toml reads while building are copied before the package is."""
    copied = {word for instruction in _instructions("COPY") for word in shlex.split(instruction)}
    assert {"pyproject.toml", "README.md", "LICENSE", "hatch_build.py", "sagakit", "workers"} <= copied


def test_the_image_runs_a_worker_as_nobody_special() -> None:
    """Its command is a worker of the example application, its user not root, its Python one that sagakit supports."""
    [command] = _instructions("CMD")
    _check_command(json.loads(command))
    assert _instructions("USER") not in ([], ["root"])
    for base in _instructions("FROM"):
        if match := re.match(r"python:3\.(\d+)", base):
            assert int(match[1]) >= 11


def test_the_deployments_page_names_the_variables_that_are_set() -> None:
    """deploy/README.md and docker-compose.yml agree."""
    told = set(re.findall(r"^\| `([A-Z_]+)` \|", (ROOT / "deploy" / "README.md").read_text(), re.MULTILINE))
    assert told == set(OURS["worker"]["environment"])
