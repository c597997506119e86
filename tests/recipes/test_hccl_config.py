"""Rank tables: written, merged, and refused with the line that is wrong."""

import json

import pytest
from small import command

from minddistill.recipes import hccl_config

IPS = ["192.168.100.101", "192.168.101.101"]


def write(directory, server, ips=IPS):
    out = directory / f"{server}.json"
    flags = ["--devices", "0,1", "--ips", ",".join(ips), "--server_id", server, "--output", out]
    assert command("hccl-config", *flags) == 0
    return out


def test_a_node_is_written_as_hccl_reads_it(tmp_path):
    table = json.loads(write(tmp_path, "10.0.0.1").read_text())
    assert table == {
        "version": "1.0",
        "server_count": "1",
        "server_list": [
            {
                "server_id": "10.0.0.1",
                "device": [
                    {"device_id": "0", "device_ip": IPS[0], "rank_id": "0"},
                    {"device_id": "1", "device_ip": IPS[1], "rank_id": "1"},
                ],
                "host_nic_ip": "reserve",
            }
        ],
        "status": "completed",
    }


def test_addresses_are_read_from_the_installation(tmp_path, monkeypatch):
    conf = tmp_path / "hccn.conf"
    conf.write_text("netmask_0=255.255.255.0\naddress_0=192.168.0.5\naddress_1=192.168.1.5\n")
    monkeypatch.setattr(hccl_config, "HCCN", conf)
    out = tmp_path / "table.json"
    assert command("hccl-config", "--devices", "1,0", "--server_id", "10.0.0.1", "--output", out) == 0
    devices = json.loads(out.read_text())["server_list"][0]["device"]
    assert [device["device_ip"] for device in devices] == ["192.168.1.5", "192.168.0.5"]
    assert command("hccl-config", "--devices", "2", "--output", out) == 2


def test_nodes_are_merged_with_ranks_counted_on(tmp_path):
    first, second = write(tmp_path, "10.0.0.1"), write(tmp_path, "10.0.0.2", ["192.168.100.102", "192.168.101.102"])
    out = tmp_path / "both.json"
    assert command("hccl-config", "--merge", f"{first},{second}", "--output", out) == 0
    table = json.loads(out.read_text())
    assert table["server_count"] == "2"
    assert [d["rank_id"] for s in table["server_list"] for d in s["device"]] == ["0", "1", "2", "3"]
    assert command("hccl-config", "--check", out, "--device_num", 2) == 0
    assert command("hccl-config", "--merge", f"{first},{first}", "--output", out) == 2


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"server_list"', '"servers"', "server_list"),
        ('"1.0",', '"1.0"', "line 3"),
        ('"server_count": "1"', '"server_count": "2"', "line 3: server_count"),
        (IPS[1], IPS[0], "line 15: device_ip 192.168.100.101 is there twice"),
        (IPS[1], "192.168.300.1", "line 15: device_ip '192.168.300.1' is no IP address"),
        ('"device_id": "1"', '"device_id": "0"', "device 0 of server 10.0.0.1 is there twice"),
        ('"rank_id": "1"', '"rank_id": "4"', "rank_id are [0, 4]; expected 0 to 1"),
        ('"device_ip": "192.168.101.101",', "", "has no device_ip"),
        ("10.0.0.1", "10.0.0.1", "has 2 devices, DEVICE_NUM is 8"),
    ],
)
def test_broken_tables_are_refused(tmp_path, capsys, old, new, said):
    path = write(tmp_path, "10.0.0.1")
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    assert command("hccl-config", "--check", path, "--device_num", 8) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line and said in line


@pytest.mark.parametrize(("address", "said"), [("127.0.1.1", "127.0.1.1"), ("", "no address")])
def test_a_node_whose_name_leads_nowhere_is_asked_for_its_address(tmp_path, monkeypatch, capsys, address, said):
    def found(name):
        if not address:
            raise OSError
        return address

    monkeypatch.setattr(hccl_config.socket, "gethostbyname", found)
    flags = ["--devices", "0,1", "--ips", ",".join(IPS), "--output", tmp_path / "hccl.json"]
    assert command("hccl-config", *flags) == 2
    error = capsys.readouterr().err
    assert f"leads to {said}; give this node's address" in error and error.count("\n") == 1
    assert command("hccl-config", *flags, "--server_id", "127.0.0.1") == 0


def test_devices_that_msrun_would_not_use_are_refused(tmp_path, capsys):
    """It gives its processes the devices from 0 on, whatever the table says."""
    table = tmp_path / "hccl.json"
    flags = ["--devices", "4,5", "--ips", ",".join(IPS), "--server_id", "10.0.0.1", "--output", table]
    assert command("hccl-config", *flags) == 0
    assert command("hccl-config", "--check", table) == 0
    capsys.readouterr()
    assert command("hccl-config", "--check", table, "--device_num", 2) == 2
    assert "has devices 4, 5; msrun gives its processes 0 to 1" in capsys.readouterr().err
