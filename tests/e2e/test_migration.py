# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables of another size or layout: every flow and every packet goes along, while traffic flows."""

from __future__ import annotations

import collections.abc as c
import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import random
import resource
import socket
import struct
import subprocess
import threading
import time
import types
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.attach import converge as attach
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import bcc as build_bcc
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import render
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import clock
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import jiffies as chain_jiffies
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import layout as chain_layout
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import maps as chain_maps
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import programs as chain_programs
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import codec as flow
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import schema
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import table as flow_table
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import (
    converge as generation,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpf, bpffs, netdev, netns
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import (
    bpf,
    bpf_batch,
    bpf_constants,
    bpffs,
    bpffs_mount,
    netdev,
    private_netns,
)
from ansible_collections.ebpf.conntrack.tests.e2e import prebuilt, syscalls
    mounted = bpffs_mount.ensure_mounted(bpffs.STANDARD)
    root = f"{bpffs.STANDARD}/migrate{random.randrange(1 << 32):08x}"
    os.mkdir(root)
    try:
        yield Chain(bpffs.Paths(root, str(directory / "state")), headers)
    finally:
        generation.remove_tree(root)
        if mounted:
            bpffs_mount.release(bpffs.STANDARD)
