"""The configuration: every key at its default, and errors that name the place."""

from pathlib import Path

import pytest

from twinshare.agent.config import Config, ConfigError, RegistryConfig, load_config

SHIPPED = Path(__file__).parents[2] / "configs" / "twinshare.toml"


def test_the_shipped_file_is_every_key_at_its_default() -> None:
    assert load_config(SHIPPED, environment={}) == Config()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[api]\nlisen = "x"\n', ["line 2", "api.lisen", "api.listen"]),
        ("[node]\n\nname = 3\n", ["line 3", "node.name", "Expected `str`"]),
        ('[node]\nname = "local"\n', ["line 1: node: name 'local' stands for another node"]),
        ("[nod]\n", ["line 1", "nod", "node"]),
        ("[api\n", ["line 1"]),
        ('[hypervisor]\naccelerator = "xen"\n', ["line 2", "accelerator"]),
        ("[images]\nregistries = [{host = 3}]\n", ["line 2", "registries"]),
    ],
)
def test_a_wrong_file_is_refused_by_file_line_and_key(tmp_path: Path, text: str, words: list[str]) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(file, environment={})
    assert all(word in str(error.value) for word in [str(file), *words]), str(error.value)


def test_the_environment_stands_over_the_file_and_options_over_both(tmp_path: Path) -> None:
    file = tmp_path / "good.toml"
    file.write_text('[node]\nname = "file"\ndata_dir = "/file"\n[[images.registries]]\nhost = "r:5000"\n')
    environment = {"TWINSHARE_NODE_NAME": "env", "TWINSHARE_NODE_DATA_DIR": "/env", "TWINSHARE_API_RATE": "5"}
    config = load_config(file, {"node": {"name": "option"}}, environment)
    assert (config.node.name, config.node.data_dir, config.api.rate) == ("option", "/env", 5.0)
    assert config.images.registries == [RegistryConfig(host="r:5000")]


def test_a_wrong_variable_is_named() -> None:
    with pytest.raises(ConfigError, match="TWINSHARE_API_RATE"):
        load_config(SHIPPED, environment={"TWINSHARE_API_RATE": "fast"})


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        load_config(tmp_path / "nowhere.toml", environment={})


@pytest.mark.parametrize(("text", "listen"), [("", []), ("/ip6/::1/tcp/1", ["/ip6/::1/tcp/1"]), ("a,,b,", ["a", "b"])])
def test_a_list_in_the_environment_may_be_empty(text: str, listen: list[str]) -> None:
    assert load_config(None, None, {"TWINSHARE_P2P_LISTEN": text}).p2p.listen == listen
