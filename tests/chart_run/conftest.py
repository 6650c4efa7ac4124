"""Pods of the chart on this machine."""

import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from mesh.settings import Settings
from mesh.testing import fixtures
from tests.chart.rendering import EXTERNAL, merged, render
from tests.chart_run.kubelet import Manifest, Node, SecretFiles, address
