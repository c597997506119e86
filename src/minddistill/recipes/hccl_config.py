"""Rank tables: what HCCL on Ascend is told of the devices that train together. Written, merged and checked here."""

from __future__ import annotations

import ipaddress
import json
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import flag, numbers, parse
from ..errors import UserError
from ..files import read_json, write_json

HCCN = Path("/etc/hccn.conf")


@dataclass
class Config:
    """Rank table."""

    check: str = flag("", "a rank table to check; nothing is written")
    merge: str = flag("", "rank tables of several nodes with commas between, in the order of their ranks")
    device_num: int = flag(0, "with --check: devices that this node must have; 0 for any number")
    devices: str = flag("0,1,2,3,4,5,6,7", "ids of this node's devices")
    ips: str = flag("", f"their addresses, in the same order; read from {HCCN} by default")
    server_id: str = flag("", "this node's address; found by its name by default")
    output: str = flag("hccl.json", "the file to write")


def run(config: Config) -> Path:
    """Check, merge or write a rank table; returns its path.

    Raises:
        UserError: a table is broken, or what one is made from is missing.
    """
    if config.device_num and not config.check:
        raise UserError(f"--device_num {config.device_num}: is for --check; --devices says which there are")
    if config.check:
        servers = read_table(Path(config.check))
        _counted(Path(config.check), servers, config.device_num)
        return Path(config.check)
    if config.merge:
        files = [Path(name) for name in config.merge.split(",")]
        servers = [server for file in files for server in read_table(file, ranks=False)]
    else:
        devices = numbers(config.devices, "--devices")
        ips = config.ips.split(",") if config.ips else _addresses(devices)
        if len(ips) != len(devices):
            raise UserError(f"--ips: {len(ips)} addresses for {len(devices)} devices; give one for each of --devices")
        listed = [{"device_id": str(device), "device_ip": ip} for device, ip in zip(devices, ips, strict=True)]
        server = config.server_id or _own_address()
        servers = [{"server_id": server, "device": listed, "host_nic_ip": "reserve"}]
    output = Path(config.output)
    table = {"version": "1.0", "server_count": str(len(servers)), "server_list": servers, "status": "completed"}
    for rank, device in enumerate(_devices(servers)):
        device["rank_id"] = str(rank)
    _checked(output, table, json.dumps(table))
    write_json(output, table)
    print(f"{output}: {len(servers)} nodes, {sum(1 for _ in _devices(servers))} devices")
    return output


def _own_address() -> str:
    """This node's address by its name."""
    try:
        found = socket.gethostbyname(socket.gethostname())
    except OSError:
        found = ""
    if not found or found.startswith("127."):  # which no other node could reach
        raise UserError(
            f"--server_id is empty, and the name {socket.gethostname()!r} leads to {found or 'no address'}; give this node's address"
        )
    return found


def read_table(path: Path, ranks: bool = True) -> list[dict]:
    """The servers of a rank table.

    Args:
        ranks: whether its ranks must count from 0; those of one node's table may start anywhere.

    Raises:
        UserError: names the file, the line and what is wrong there.
    """
    table = read_json(path, "a rank table")
    return _checked(path, table, path.read_text(encoding="utf-8"), ranks)


def _devices(servers: list[dict]) -> Iterator[dict]:
    for server in servers:
        yield from server["device"]


def _checked(path: Path, table: Any, text: str, ranks: bool = True) -> list[dict]:
    def fail(what: str, value: Any = None, nth: int = 1) -> UserError:
        return UserError(f"{path}: {_line(text, value, nth)}{what}")

    if not isinstance(table, dict) or not isinstance(table.get("server_list"), list) or not table["server_list"]:
        raise fail("no list of servers; expected an object with server_list, as minddistill hccl-config writes it")
    servers = table["server_list"]
    if str(table.get("server_count", len(servers))) != str(len(servers)):
        raise fail(f"server_count is {table['server_count']!r}, server_list has {len(servers)}", "server_count")
    seen: dict[str, int] = {}
    names: set[str] = set()
    found_ranks = []
    for number, server in enumerate(servers, 1):
        name = server.get("server_id") if isinstance(server, dict) else None
        if not isinstance(name, str) or not isinstance(server.get("device"), list) or not server["device"]:
            raise fail(f"server {number} has no server_id or no device list", "server_id", number)
        if name in names:
            raise fail(f"server {name} is there twice; list its devices once", name, 2)
        names.add(name)
        ids: set[str] = set()
        for device in server["device"]:
            for field in ("device_id", "device_ip", "rank_id"):
                if not isinstance(device, dict) or not isinstance(device.get(field), str):
                    raise fail(f"a device of server {name} has no {field} (text); expected it beside {device}", name)
            if not all(re.fullmatch("[0-9]{1,9}", device[field]) for field in ("device_id", "rank_id")):
                raise fail(f"device_id {device['device_id']!r}, rank_id {device['rank_id']!r}: expected numbers", name)
            if device["device_id"] in ids:
                raise fail(f"device {device['device_id']} of server {name} is there twice", device["device_ip"], 2)
            ids.add(device["device_id"])
            address = device["device_ip"]
            try:
                ipaddress.ip_address(address)
            except ValueError:
                raise fail(f"device_ip {address!r} is no IP address", address) from None
            seen[address] = seen.get(address, 0) + 1
            if seen[address] > 1:
                raise fail(f"device_ip {address} is there twice; every device needs its own", address, 2)
            found_ranks.append(int(device["rank_id"]))
    if ranks and found_ranks != list(range(len(found_ranks))):
        raise fail(f"rank_id are {found_ranks}; expected 0 to {len(found_ranks) - 1} in this order", "rank_id")
    return servers


def _line(text: str, value: Any, nth: int) -> str:
    """ "line N: " of the nth place where a quoted word stands, or nothing."""
    places = list(re.finditer(re.escape(json.dumps(value)), text)) if value is not None else []
    if not places:
        return ""
    return f"line {text.count(chr(10), 0, places[min(nth, len(places)) - 1].start()) + 1}: "


def _counted(path: Path, servers: list[dict], wanted: int) -> None:
    for server in servers:
        count = len(server["device"])
        if wanted and count != wanted:
            raise UserError(
                f"{path}: server {server['server_id']} has {count} devices, DEVICE_NUM is {wanted}; make them agree"
            )
        ids = [int(device["device_id"]) for device in server["device"]]
        if wanted and sorted(ids) != list(range(count)):
            raise UserError(
                f"{path}: server {server['server_id']} has devices {', '.join(map(str, ids))}; msrun gives its processes 0 to "
                f"{count - 1}: choose others by ASCEND_RT_VISIBLE_DEVICES, and write the table for 0 to {count - 1}"
            )


def _addresses(devices: list[int]) -> list[str]:
    """The devices' addresses, from the lines address_ID=IP that Ascend's installation writes."""
    if not HCCN.is_file():
        raise UserError(f"{HCCN}: not there, so that the devices' addresses are unknown; give --ips")
    known = dict(re.findall(r"^address_(\d+)=(\S+)$", HCCN.read_text(), re.M))
    missing = [device for device in devices if str(device) not in known]
    if missing:
        raise UserError(f"{HCCN}: no line address_{missing[0]}=...; give --devices that are there, or --ips")
    return [known[str(device)] for device in devices]


def main(argv: list[str] | None = None) -> None:
    """Entry of `minddistill hccl-config`."""
    run(*parse("minddistill hccl-config", "Write, merge or check rank tables of Ascend devices.", [Config], argv))
