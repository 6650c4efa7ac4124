"""What docs/limits.md says, done as it says it."""

import re
from pathlib import Path
from typing import Any

from mesh import Mesh
from mesh.bus.limits import in_use
from mesh.settings import Settings
from mesh.testing import eventually, hosting

PAGE = Path(__file__).resolve().parents[2] / "docs/limits.md"
BLOCKS = dict(re.findall(r"^```python (.+)\n((?:.*\n)*?)```$", PAGE.read_text(), flags=re.MULTILINE))


async def test_the_handler_runs_and_books_what_it_used(settings: Settings, mesh: Mesh) -> None:
    async def complete(text: str) -> tuple[str, int]:
        return text.upper(), 873

    found: dict[str, Any] = {"__name__": "guide", "complete": complete}
    exec(compile(BLOCKS["handler"], str(PAGE), "exec"), found)

    async with hosting(found["agent"], settings=settings):
        handle = await mesh.submit(found["summarise"], "tea")
        assert await handle.result(within_s=20) == "TEA"

        async def is_corrected() -> bool:
            _, _, rates = await in_use(mesh.bus)
            (bucket, stored_at) = rates["openai"][0].tokens, rates["openai"][1]
            # 873 tokens are earned in less than a second.
            return bucket.fresh == 0 and bucket.until < stored_at + 873 / 1_500 + 0.1

        await eventually(is_corrected)
