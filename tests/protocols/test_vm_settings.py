"""The settings of a VM: one Struct under the spec, the change, the domain's metadata and the answer."""

from __future__ import annotations

import msgspec
import pytest

from twinshare.agent.vm.record import VmMetadata
from twinshare.protocols.vm import Vm, VmChange, VmSettings, VmSpec, settings_of


@pytest.mark.parametrize("kind", [VmSpec, VmChange, Vm, VmMetadata])
def test_each_form_of_a_vm_has_every_setting(kind: type[msgspec.Struct]) -> None:
    assert set(VmSettings.__struct_fields__) <= set(kind.__struct_fields__)


def test_settings_are_copied_whole() -> None:
    spec = VmSpec(name="a", image="tiny", autostart=True, labels={"k": "v"})
    assert settings_of(spec) == {"autostart": True, "labels": {"k": "v"}, "ttl": None}


def test_a_change_leaves_what_it_does_not_name() -> None:
    assert VmChange() == VmChange(autostart=None, labels=None, ttl=None)
    assert msgspec.json.encode(VmChange(autostart=False)) == b'{"autostart":false}'


@pytest.mark.parametrize("labels", ['{"a": "\\u0001"}', '{"a\\u0007": "b"}', '{"": "b"}'])
@pytest.mark.parametrize(("kind", "named"), [(VmSpec, '"name": "a", "image": "tiny", '), (VmChange, "")])
def test_labels_are_checked_in_a_spec_and_in_a_change(labels: str, kind: type[msgspec.Struct], named: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(f'{{{named}"labels": {labels}}}', type=kind)
    msgspec.json.decode(f'{{{named}"labels": {{"a": "b"}}}}', type=kind)
