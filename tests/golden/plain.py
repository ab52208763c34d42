"""What the golden messages mean, in plain values: each method of the peer protocol with arguments and an answer.

Every optional field of today is given, so that a reader that lost one is noticed.
"""

from __future__ import annotations

from typing import Any

NOON = "2025-05-10T12:00:00Z"
DIGEST = "blake3:" + "5a" * 32

VM = {
    "id": "5f0c2f52-7b0e-5a53-9d1c-4f3a2b1c0d9e", "name": "web", "status": "running", "cpu_cores": 2, "memory": 512,
    "disk_size": 4, "hypervisor": "qemu", "network": "default", "vnc_port": 5901, "created_at": NOON, "uptime": 61,
    "ip": "10.0.2.15", "image": "tiny:latest", "owner": "local", "node": "golden", "observed_at": NOON,
    "reachable": True, "autostart": True, "labels": {"team": "blue"}, "reason": "user", "warnings": ["slow"],
}  # fmt: skip
SPEC = {
    "name": "web", "image": "tiny:latest", "cpu_cores": 2, "memory": 512, "disk_size": 4, "network": "default",
    "hypervisor": "qemu", "start": True, "autostart": True, "labels": {"team": "blue"},
    "cloud_init": {
        "user_data": "#cloud-config\n", "network_config": "version: 2\n", "hostname": "web",
        "ssh_authorized_keys": ["ssh-ed25519 AAAA me"],
    },
}  # fmt: skip
IMAGE = {
    "name": "tiny", "tag": "latest", "digest": DIGEST, "manifest": "sha256:" + "6b" * 32, "size": 1 << 20,
    "allocated": 4096, "created_at": NOON, "registry": "local", "source": "build-tiny", "used_by": ["web"],
    "labels": {"os": "linux"}, "damaged": False,
}  # fmt: skip
OPERATION = {
    "id": "0123456789abcdef0123456789abcdef", "kind": "create_vm", "target": "web", "node": "golden",
    "state": "running", "progress": {"done": 2, "total": 4, "unit": "steps", "message": "disk"}, "result": None,
    "error": None, "created_at": NOON, "updated_at": NOON, "idempotency_key": "the-key", "principal": "local",
}  # fmt: skip
FAILED = OPERATION | {
    "state": "failed", "error": {"error": "no image 'x'", "code": "image_not_found", "details": {"image": "x"}},
}  # fmt: skip
FORWARD = {"host_port": 8022, "guest_port": 22, "protocol": "tcp", "bind": "127.0.0.1", "active": True}
FORWARD_SPEC = {"host_port": 8022, "guest_port": 22, "protocol": "tcp", "bind": "127.0.0.1"}
RESOURCES = {"memory": 4096, "cpu": 8, "disk": 100}

# method: its arguments, its answer
CALLS: dict[str, tuple[dict[str, Any], Any]] = {
    "list_vms": ({}, [VM]),
    "create_vm": ({"spec": SPEC}, VM),
    "get_vm": ({"vm": "web"}, VM),
    "update_vm": ({"vm": "web", "change": {"autostart": False, "labels": {"team": "red"}}}, VM),
    "start_vm": ({"vm": "web"}, VM),
    "stop_vm": ({"vm": "web", "force": True, "timeout": 9}, VM),
    "restart_vm": ({"vm": "web", "force": True, "timeout": 9}, VM),
    "pause_vm": ({"vm": "web"}, VM | {"status": "paused"}),
    "resume_vm": ({"vm": "web"}, VM),
    "delete_vm": ({"vm": "web", "delete_disk": False, "force": True}, VM | {"status": "stopped"}),
    "vm_ip": ({"vm": "web"}, {"ip": "10.0.2.15", "addresses": ["10.0.2.15"], "source": "agent"}),
    "vm_stats": (
        {"vm": "web"},
        {
            "cpu_time": 1.5, "memory_rss": 2, "disk_read": 3, "disk_written": 4, "disk_allocated": 5,
            "net_received": 6, "net_sent": 7, "observed_at": NOON,
        },
    ),
    "vm_log": ({"vm": "web", "offset": 7, "limit": 100}, {"text": "boot", "offset": 7, "next_offset": 11}),
    "vm_screenshot": ({"vm": "web"}, {"media_type": "image/png", "data": "iVBORw=="}),
    "list_forwards": ({"vm": "web"}, [FORWARD]),
    "add_forward": ({"vm": "web", "forward": FORWARD_SPEC}, FORWARD),
    "remove_forward": ({"vm": "web", "host_port": 8022}, FORWARD | {"active": False}),
    "list_images": ({}, [IMAGE]),
    "capture_image": ({"vm": "web", "name": "mine", "reset_identity": True}, IMAGE),
    "prune_images": ({"all": True, "dry_run": True}, {"images": [IMAGE], "freed": 4096, "dry_run": True}),
    "fsck_images": (
        {},
        {
            "images": 1, "bytes": 9,
            "findings": [
                {
                    "fault": "stray", "message": "a file", "mended": True, "digest": DIGEST, "names": ["tiny:latest"],
                    "vms": ["web"],
                }
            ],
        },
    ),
    "build_tiny": ({}, IMAGE),
    "pull_image": ({"request": {"image": "ubuntu-24.04", "name": "mine", "sha256": "7c" * 32}}, IMAGE),
    "push_image": (
        {"request": {"image": "tiny", "target": "registry.example/tiny:1", "dry_run": True}},
        {"image": IMAGE, "target": "registry.example/tiny:1", "manifest": "sha256:" + "6b" * 32},
    ),
    "list_catalogue": ({}, [{"name": "ubuntu", "source": "https://example.org/u", "user": "ubuntu", "about": "x"}]),
    "get_image": ({"image": "tiny"}, IMAGE),
    "remove_image": ({"image": "tiny"}, IMAGE),
    "list_operations": ({"state": "failed"}, [FAILED]),
    "get_operation": ({"id": OPERATION["id"]}, OPERATION),
    "wait_operation": ({"id": OPERATION["id"], "timeout": 2.5}, OPERATION | {"state": "done", "result": VM}),
    "cancel_operation": ({"id": OPERATION["id"]}, OPERATION | {"state": "cancelled"}),
    "health": (
        {},
        {
            "status": "ok", "name": "golden", "version": "0.1.0", "peer_id": "12D3KooW", "hypervisor": "QEMU",
            "accelerator": "kvm", "p2p": "started", "vms": 1, "uptime": 5, "problems": ["x"],
        },
    ),
    "capacity": (
        {}, dict.fromkeys(("total", "reserve", "committed", "in_flight", "available"), RESOURCES)
    ),
    "deliver": (
        {"letter": {"message_type": "NOTE", "data": {"text": "hello", "list": [1, 2.5, None, True]}}},
        {"status": "ok", "message": "NOTE received"},
    ),
    "knock": ({"knock": {"ticket": "AQIDBAUG", "nonce": "AAECAwQFBgcICQoLDA0ODw=="}}, "Dw4NDAsKCQgHBgUEAwIBAA=="),
}  # fmt: skip

ERRORS: tuple[dict[str, Any], ...] = (
    {"error": "no VM is called 'web' here", "code": "vm_not_found", "status": 404, "details": {"vm": "web"}},
    {"error": "the role admin is needed", "code": "forbidden", "status": 403, "details": {"role_needed": "admin"}},
    {"error": "port 80 is taken", "code": "port_taken", "status": 409, "details": {"port": 80}},
    {"error": "this node does not know the operation", "code": "unsupported", "status": 501, "details": None},
    {"error": "internal error", "code": "internal", "status": 500, "details": None},
)

EVENTS: dict[str, dict[str, Any]] = {
    "vm.state": {"id": VM["id"], "name": "web", "status": "running"},
    "vm.deleted": {"id": VM["id"]},
    "op.done": {
        "id": OPERATION["id"], "kind": "create_vm", "target": "web", "state": "failed",
        "progress": {"done": 2, "total": None, "unit": "steps", "message": "disk"},
        "error": {"error": "no image", "code": "image_not_found", "details": None},
    },
    "p2p.message": {"from": "12D3KooW", "name": "far", "message_type": "NOTE", "data": {"text": "hello"}},
}  # fmt: skip
