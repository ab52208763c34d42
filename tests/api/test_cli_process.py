"""The command as a process: finding the node, pipes, start time, completion in a real shell."""

import json
import os
import pty
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.api.recorded import VM, Answer, operation, recorded_node

COMMAND = [sys.executable, "-m", "twinshare"]
ROUTES = {"GET /api/vm": [Answer({"vms": [VM]})]}


def run(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TWINSHARE_")}
    return subprocess.run(arguments, capture_output=True, text=True, timeout=60, env=kept | environment)


def agent_file(data_dir: Path, url: str, pid: int) -> None:
    data_dir.mkdir(exist_ok=True)
    (data_dir / "agent.json").write_text(json.dumps({"pid": pid, "name": data_dir.name, "api_url": url}))
    (data_dir / "admin.token").write_text("from-file\n")


def test_the_node_is_found_by_its_data_directory(tmp_path: Path) -> None:
    with recorded_node(ROUTES) as node:
        agent_file(tmp_path / "a", node.url, os.getpid())
        result = run([*COMMAND, "vm", "ls"], TWINSHARE_DATA_DIR=str(tmp_path / "a"))
    assert (result.returncode, result.stderr) == (0, "")
    assert node.seen[0].headers["authorization"] == "Bearer from-file"


def test_a_token_in_the_environment_wins(tmp_path: Path) -> None:
    with recorded_node(ROUTES) as node:
        agent_file(tmp_path / "a", node.url, os.getpid())
        run([*COMMAND, "vm", "ls"], TWINSHARE_DATA_DIR=str(tmp_path / "a"), TWINSHARE_TOKEN="mine")
    assert node.seen[0].headers["authorization"] == "Bearer mine"


def test_no_node_runs_here(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    agent_file(tmp_path / "killed", "http://127.0.0.1:1", dead.pid)
    for data_dir in ("killed", "never"):
        result = run([*COMMAND, "vm", "ls"], TWINSHARE_DATA_DIR=str(tmp_path / data_dir))
        assert (result.returncode, result.stdout) == (4, "")
        assert str(tmp_path / data_dir) in result.stderr
        assert "twinshare agent" in result.stderr


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "ftp://x", "http://h:port"])
def test_what_is_no_url_is_said(url: str) -> None:
    result = run([*COMMAND, "vm", "ls"], TWINSHARE_API=url)
    assert result.returncode == 1
    assert "http://127.0.0.1:8080" in result.stderr


def test_nothing_answers() -> None:
    result = run([*COMMAND, "vm", "ls"], TWINSHARE_API="http://127.0.0.1:1")
    assert (result.returncode, result.stdout) == (4, "")
    assert result.stderr == "Error: no node answers at http://127.0.0.1:1: Connection refused; is it running?\n"


def test_a_reader_that_goes_away_is_no_error() -> None:
    with recorded_node({"GET /api/vm": [Answer({"vms": [VM] * 5000})]}) as node:
        result = run(["bash", "-c", f"{' '.join(COMMAND)} vm ls | head -1"], TWINSHARE_API=node.url)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_list_starts_fast(capsys: pytest.CaptureFixture[str]) -> None:
    """Figures for people; only a gross slip fails. CPU time, the best of five: others work on this machine, too."""

    def cost(arguments: list[str], url: str) -> float:
        def once() -> float:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            assert run(arguments, TWINSHARE_API=url).returncode == 0
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

        return min(once() for _ in range(5))

    with recorded_node(ROUTES) as node:
        bare = cost([sys.executable, "-c", "import click"], node.url)
        listing = cost([*COMMAND, "vm", "ls"], node.url)
    with capsys.disabled():
        figures = f"{listing * 1000:.0f} ms of CPU, {listing / bare:.1f} times 'import click' ({bare * 1000:.0f} ms)"
        sys.stdout.write(f"\nvm ls: {figures}\n")
    assert listing / bare < 8


def test_a_list_imports_no_loop_and_no_server() -> None:
    code = (
        "import sys\nfrom twinshare.api.cli import main\n"
        "try:\n    main(['vm', 'ls'])\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('trio', 'asyncio', 'quart', 'httpx', 'rich', 'libp2p') if name in sys.modules])"
    )
    with recorded_node(ROUTES) as node:
        result = run([sys.executable, "-c", code], TWINSHARE_API=node.url)
    assert result.stdout.splitlines()[-1] == "[]"


def test_help_imports_no_command() -> None:
    code = (
        "import sys\nfrom twinshare.api.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([name for name in sys.modules if name.split('.')[0] == 'msgspec' or '.cli.' in name])"
    )
    assert run([sys.executable, "-c", code]).stdout.splitlines()[-1] == "['twinshare.api.cli.lazy']"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_parse(shell: str, tmp_path: Path) -> None:
    script = run([*COMMAND, "completion", shell]).stdout
    assert "_TWINSHARE_COMPLETE" in script
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "script").write_text(script)
    assert run([shell, "-n", str(tmp_path / "script")]).returncode == 0


def test_bash_completes_commands_and_names(tmp_path: Path) -> None:
    """The script as a user's bash runs it, with our command under its own name on the PATH."""
    command = tmp_path / "twinshare"
    command.write_text(f'#!/bin/sh\nexec {" ".join(COMMAND)} "$@"\n')
    command.chmod(0o755)

    def complete(line: str) -> list[str]:
        words = line.split(" ")
        script = (
            f'eval "$(twinshare completion bash)"\nCOMP_WORDS=({" ".join(words[:-1])} "{words[-1]}")\n'
            f"COMP_CWORD={len(words) - 1}\n_twinshare_completion twinshare\n"
            'printf "%s\\n" "${COMPREPLY[@]}"'
        )
        (tmp_path / "script").write_text(script)
        path = f"{tmp_path}:{os.environ['PATH']}"
        return run(["bash", str(tmp_path / "script")], PATH=path, TWINSHARE_API=node.url).stdout.split()

    with recorded_node(ROUTES) as node:
        assert complete("twinshare vm sta") == ["start", "stats"]
        assert complete("twinshare vm start exa") == ["example-vm"]
        assert complete("twinshare token create a --role v") == ["viewer"]


def test_progress_is_drawn_on_a_terminal_alone() -> None:
    """On a terminal one line is rewritten and wiped at the end; what a program reads has no trace of it."""
    running = operation("running", kind="create_vm", target="example-vm")
    routes = {
        "POST /api/vm": [Answer(running, 202)],
        "GET /api/operations/op-1/wait": [Answer(running), Answer(operation("done", kind="create_vm", result=VM))],
    }
    terminal, theirs = pty.openpty()
    try:
        with recorded_node(routes) as node:
            command = [*COMMAND, "vm", "create", "example-vm", "--image", "tiny"]
            environment = {**os.environ, "TWINSHARE_API": node.url}
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, timeout=60, env=environment)
        drawn = os.read(terminal, 65536).decode()
    finally:
        os.close(terminal)
        os.close(theirs)
    assert done.stdout == b"example-vm running\n"
    assert "create_vm example-vm: booting 1/2 steps" in drawn
    assert drawn.endswith("\r\x1b[2K")


def test_ctrl_c_stops_the_waiting_and_not_the_work() -> None:
    routes = {
        "POST /api/vm": [Answer(operation("running"), 202)],
        "GET /api/operations/op-1/wait": [Answer(operation("running"))],
    }
    with recorded_node(routes) as node:
        command = [*COMMAND, "vm", "create", "example-vm", "--image", "tiny"]
        environment = {**os.environ, "TWINSHARE_API": node.url}
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        while len(node.seen) < 3:
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, "twinshare op wait op-1" in said) == (130, True)
    assert not any(seen.verb == "DELETE" for seen in node.seen)
