"""A headless Chromium, driven through its command line: screenshots, PDF, the page after layout, console messages."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--enable-logging=stderr", "--disable-dev-shm-usage",
)  # fmt: skip
# Run in the page that holds the report as an inner document: its width is the device's, whatever the window's is.
MEASURE = """
addEventListener("load", () => {
  const frame = document.querySelector("iframe"), page = frame.contentDocument, root = page.documentElement;
  for (const details of page.querySelectorAll("details")) details.open = true;
  const scrolls = (e) => { for (; e; e = e.parentElement) if (e.classList.contains("scroll")) return true; };
  const wide = [...page.body.querySelectorAll("*")].filter((e) => {
    const box = e.getBoundingClientRect();
    return box.width && box.right > root.clientWidth + 1 && !scrolls(e) && !e.closest("svg");
  });
  document.body.dataset.client = root.clientWidth;
  document.body.dataset.scroll = root.scrollWidth;
  document.body.dataset.height = root.scrollHeight;
  document.body.dataset.wide = wide.slice(0, 5).map((e) => `${e.tagName}.${e.className}`).join(" ");
  document.body.dataset.svg = [...page.querySelectorAll("svg[role=img]")].filter(
    (e) => e.getBoundingClientRect().height < 5).length;
});
"""


def executable() -> str:
    """The browser; the test is skipped, with what to install, where there is none."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on the PATH (apt-get install chromium)")
    return found


def browse(page: Path, profile: Path, *flags: str) -> tuple[str, list[str]]:
    """Open a file; returns standard output and what the page's console said."""
    command = [executable(), *QUIET, f"--user-data-dir={profile}", *flags, page.resolve().as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


def measure(page: Path, folder: Path, width_px: int) -> tuple[dict[str, str], list[str]]:
    """Lay a page out at a device width; returns the widths, what sticks out, and the console's messages."""
    holder = folder / f"holder-{width_px}.html"
    inner = html.escape(page.read_text(encoding="utf-8"))
    holder.write_text(
        f'<!DOCTYPE html><meta charset="utf-8"><body><iframe style="border:0;width:{width_px}px;height:800px" '
        f'srcdoc="{inner}"></iframe><script>{MEASURE}</script>',
        encoding="utf-8",
    )
    text, console = browse(holder, folder / f"profile-{width_px}", "--dump-dom")
    body = re.search(r"<body([^>]*)>", text)
    assert body is not None
    return dict(re.findall(r'data-(\w+)="([^"]*)"', body[1])), console
