"""What is accepted of a registry's manifests, and what they are taken for."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinshare.agent.images.registry import manifest as m
from twinshare.protocols.errors import InvalidRequest, RegistryFailed

DIGEST = "sha256:" + "ab" * 32


def layer(media_type: str, size: int = 5, annotations: dict[str, str] | None = None) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": DIGEST, "size": size, "annotations": annotations or {}}


def encoded(layers: list[dict[str, Any]], media_type: str = m.MANIFEST, **more: Any) -> bytes:
    body = {"schemaVersion": 2, "mediaType": media_type, "config": layer(m.CONFIG), "layers": layers, **more}
    return json.dumps(body).encode()


def manifest(*layers: dict[str, Any]) -> m.Manifest:
    found = m.decode_manifest(encoded(list(layers)), m.MANIFEST)
    assert isinstance(found, m.Manifest)
    return found


def test_what_is_written_is_read_back() -> None:
    made = m.Manifest(
        artifact_type=m.ARTIFACT,
        config=m.Descriptor(media_type=m.CONFIG, digest=DIGEST, size=2),
        layers=[m.Descriptor(media_type=m.INDEX_LAYER, digest=DIGEST, size=9, annotations={"a": "b"})],
    )
    data = made.encode()
    assert json.loads(data)["schemaVersion"] == 2
    assert json.loads(data)["mediaType"] == m.MANIFEST
    assert m.decode_manifest(data, m.MANIFEST) == made


@pytest.mark.parametrize(
    ("data", "content_type"),
    [
        (b"", m.MANIFEST),
        (b"[]", m.MANIFEST),
        (b"{}", "text/html"),
        (b"{" * 100_000, m.MANIFEST),
        (b"\xff\xfe", m.MANIFEST),
        (encoded([]), m.INDEX),
        (encoded([layer(m.PACK_LAYER)], media_type="application/x"), "application/x"),
        (encoded([{"mediaType": "x", "digest": "sha256:short", "size": 1}]), m.MANIFEST),
        (encoded([{"mediaType": "x", "digest": DIGEST + "\n", "size": 1}]), m.MANIFEST),
        (encoded([{"mediaType": "x", "digest": DIGEST, "size": -1}]), m.MANIFEST),
        (encoded([{"mediaType": "x", "digest": DIGEST, "size": 1 << 60}]), m.MANIFEST),
        (encoded([layer("x")] * 5000), m.MANIFEST),
    ],
)
def test_what_is_no_manifest_is_the_registrys_fault(data: bytes, content_type: str) -> None:
    with pytest.raises(RegistryFailed):
        m.decode_manifest(data, content_type)


@given(
    st.binary(max_size=100)
    | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(json.dumps).map(str.encode)
)
def test_any_answer_is_read_or_refused(data: bytes) -> None:
    with pytest.raises(RegistryFailed):
        m.decode_manifest(data, m.MANIFEST)


@pytest.mark.parametrize(
    ("types", "kind"),
    [
        ([m.INDEX_LAYER, m.PACK_LAYER], m.Kind.TWINSHARE),
        (["application/vnd.cirunlabs.meda.base-image.v1", "application/octet-stream"], m.Kind.MEDA),
        (["application/vnd.cirunlabs.meda.base-image-chunk.v1"], m.Kind.MEDA),
        (["application/vnd.trycua.lume.disk.v1"], m.Kind.LUME),
        (["application/vnd.oci.image.layer.v1.tar+gzip"], m.Kind.CONTAINER_DISK),
        (["application/vnd.docker.image.rootfs.diff.tar.gzip"], m.Kind.CONTAINER_DISK),
        (["application/vnd.oci.image.layer.v1.tar"], m.Kind.CONTAINER_DISK),
    ],
)
def test_kinds_are_recognised_by_their_layers(types: list[str], kind: m.Kind) -> None:
    assert m.kind_of(manifest(*map(layer, types))) is kind


@pytest.mark.parametrize("types", [[], ["application/vnd.cncf.helm.chart.content.v1.tar+gzip"], ["application/json"]])
def test_other_artifacts_are_refused(types: list[str]) -> None:
    with pytest.raises(InvalidRequest, match="not the image of a virtual machine"):
        m.kind_of(manifest(*map(layer, types)))


def test_meda_parts_are_ordered_by_number_and_their_titles_are_nothing_more() -> None:
    chunk = "application/vnd.cirunlabs.meda.base-image-chunk.v1"
    titles = ["../../etc/x.chunk.002", "base.raw.chunk.000", "/abs.chunk.001"]
    parts = [layer(chunk, size, {m.TITLE: title}) for size, title in enumerate(titles)]
    assert [part.size for part in m.meda_layers(manifest(*parts))] == [1, 2, 0]
    for wrong in (["a.chunk.0", "b.chunk.2"], ["a.chunk.0", "b.chunk.0"], ["a.chunk.0", "b"], ["a.chunk.1\n"]):
        with pytest.raises(RegistryFailed, match="numbered"):
            m.meda_layers(manifest(*(layer(chunk, 5, {m.TITLE: title}) for title in wrong)))


def lume(number: str, offset: str) -> dict[str, Any]:
    named = {"org.trycua.lume.part.number": number, "org.trycua.lume.part.offset": offset}
    return layer("application/vnd.trycua.lume.disk.v1", 5, named)


def test_lume_parts_say_where_they_belong() -> None:
    found = m.lume_layers(manifest(lume("2", "100"), lume("1", "0"), lume("10", "200")))
    assert [offset for offset, _ in found] == [0, 100, 200]
    for wrong in ([lume("1", "5"), lume("2", "0")], [lume("x", "0")], [lume("1", "-4")]):
        with pytest.raises(RegistryFailed):
            m.lume_layers(manifest(*wrong))


def test_the_platform_is_chosen() -> None:
    entries = [
        {"mediaType": m.MANIFEST, "digest": DIGEST, "size": size, "platform": {"architecture": name, "os": "linux"}}
        for size, name in enumerate(["arm64", "amd64"])
    ]
    body = json.dumps({"schemaVersion": 2, "mediaType": m.INDEX, "manifests": entries}).encode()
    found = m.decode_manifest(body, f"{m.INDEX}; charset=utf-8")
    assert isinstance(found, m.ManifestList)
    assert m.choose_platform(found, "amd64").size == 1
    with pytest.raises(InvalidRequest, match="riscv64"):
        m.choose_platform(found, "riscv64")
