"""The vendor data of our seed: a script of cloud-init's that installs the guest program and starts it at each boot.

It also lets the node's SSH key log in.
A script, not a `#cloud-config`: the lists in a caller's user data would take the place of ours. Systems with systemd,
with OpenRC, and with neither are served; an image without python3 is left as it is.
Format: cloud-init documentation, "Vendor data" and "User data scripts".
"""

from __future__ import annotations

import base64
import functools
import shlex

from ..guest_program.bundle import PORT_PATH, program_zip, start_code

FOLDER = "/usr/local/lib/twinshare"
ARCHIVE = f"{FOLDER}/guest.zip"
RUN = f"{FOLDER}/run-guest"

_SCRIPT = """#!/bin/sh
# Lets the key of the VM's node log in, as root and as the users that the image or cloud-init made.
KEY={key}
authorize() {{
    [ -d "$2" ] || return
    mkdir -p -m 700 "$2/.ssh"
    grep -qxF -- "$KEY" "$2/.ssh/authorized_keys" 2>/dev/null || printf '%s\\n' "$KEY" >>"$2/.ssh/authorized_keys"
    chmod 600 "$2/.ssh/authorized_keys"
    chown -R "$1" "$2/.ssh"
}}
[ -z "$KEY" ] || while IFS=: read -r name _ id _ _ home _; do
    if [ "$id" = 0 ] || {{ [ "$id" -ge 1000 ] && [ "$id" -lt 60000 ]; }}; then authorize "$name" "$home"; fi
done </etc/passwd

# Serves commands, files and connections on the guest channel of this VM.
command -v python3 >/dev/null || exit 0
mkdir -p {folder}
base64 -d >{archive} <<'END'
{content}END
cat >{run} <<'END'
#!/bin/sh
# The port of the guest channel comes with its driver.
while [ ! -e {port} ]; do sleep 1; done
exec python3 -S -E -c {code}
END
chmod 755 {run}
if [ -d /run/systemd/system ]; then
    cat >/etc/systemd/system/twinshare-guest.service <<'END'
[Unit]
Description=twinshare guest channel
ConditionPathExists={archive}
StartLimitIntervalSec=0

[Service]
ExecStart={run}
Restart=always
RestartSec=2
KillMode=process

[Install]
WantedBy=multi-user.target
END
    systemctl daemon-reload
    systemctl enable --now --no-block twinshare-guest.service
elif command -v openrc-run >/dev/null; then
    cat >/etc/init.d/twinshare-guest <<'END'
#!/sbin/openrc-run
description="twinshare guest channel"
supervisor=supervise-daemon
command={run}
END
    chmod 755 /etc/init.d/twinshare-guest
    rc-update add twinshare-guest default
    rc-service twinshare-guest start
else
    nohup sh -c 'while :; do {run}; sleep 2; done' >/dev/null 2>&1 &
fi
"""


@functools.cache
def vendor_data(node_key: str = "") -> str:
    """Return the script. The same program and the same key give the same bytes."""
    return _SCRIPT.format(
        key=shlex.quote(node_key),
        folder=FOLDER,
        archive=ARCHIVE,
        run=RUN,
        port=PORT_PATH,
        code=shlex.quote(start_code(ARCHIVE, PORT_PATH)),
        content=base64.encodebytes(program_zip()).decode(),
    )
