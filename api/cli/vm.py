"""`twinshare vm`: virtual machines, here or on a peer."""

from __future__ import annotations

import click

from .lazy import LazyGroup

COMMANDS = {
    "ls": ("vm_list:list_vms", "List VMs."),
    "show": ("vm_list:show_vm", "Show one VM."),
    "create": ("vm_create:create_vm", "Create a VM from an image."),
    "set": ("vm_create:set_vm", "Change a VM's autostart, labels or time to live."),
    "start": ("vm_actions:start", "Start VMs."),
    "stop": ("vm_actions:stop", "Shut VMs down."),
    "restart": ("vm_actions:restart", "Shut VMs down and start them again."),
    "pause": ("vm_actions:pause", "Pause VMs."),
    "resume": ("vm_actions:resume", "Resume paused VMs."),
    "rm": ("vm_actions:remove", "Delete VMs with their disks."),
    "exec": ("vm_exec:exec_command", "Run a command in a VM's guest."),
    "sessions": ("vm_exec:sessions", "List the commands that run in a VM."),
    "attach": ("vm_exec:attach", "Join a session in a VM again."),
    "cp": ("vm_copy:copy", "Copy files to a VM or from it."),
    "ssh": ("vm_ssh:ssh", "Log into a VM with the system's ssh."),
    "ssh-proxy": ("vm_ssh:ssh_proxy", "Connect stdin and stdout with a VM's SSH server."),
    "ip": ("vm_access:ip", "Print a VM's IP address."),
    "forward": ("vm_access:forward", "Forward a port of the node to a VM, now and whenever it runs."),
    "forwards": ("vm_access:forwards", "List the ports forwarded to a VM."),
    "unforward": ("vm_access:unforward", "End a port forward."),
    "console": ("vm_access:console", "Use a VM's serial console; Ctrl-] leaves it."),
    "logs": ("vm_access:console_log", "Print a VM's serial console."),
    "screenshot": ("vm_access:screenshot", "Take a picture of a running VM's screen."),
    "stats": ("vm_access:stats", "Show what a running VM has used since it was started."),
}


@click.group(cls=LazyGroup, commands_at=COMMANDS)
def vm() -> None:
    """Virtual machines.

    A VM is named by its name or id; NAME@NODE names one of a peer, and a name that one VM of the fleet alone has is
    found there.

    \b
    twinshare vm create web --image tiny --memory 128M --disk 1G --start
    twinshare vm forward web 8080:80
    twinshare vm stop web@alice
    twinshare vm ls --fleet --filter status=running
    """
