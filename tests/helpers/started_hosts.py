"""Starts a program in several processes of one machine, as on as many hosts."""

import socket
import subprocess


def free_address() -> str:
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return f"127.0.0.1:{free.getsockname()[1]}"


def start(command, number: int, address: str, count: int, **options) -> subprocess.Popen:
  """One process of a program that takes the three flags; options: Popen's."""
  flags = [
    f"--coordinator_address={address}", f"--num_processes={count}", f"--process_id={number}"
  ]  # fmt: skip
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
  return subprocess.Popen([*command, *flags], **pipes | options)


def run(command, count: int, **options) -> tuple[list[int], list[tuple[str, str]]]:
  """Runs to the end in `count` processes; their statuses, and what they print."""
  address = free_address()
  hosts = [start(command, number, address, count, **options) for number in range(count)]
  outputs = [host.communicate(timeout=300) for host in hosts]
  return [host.returncode for host in hosts], outputs
