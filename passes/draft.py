"""A graph module that is taken apart before anybody runs it."""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule


class Draft(GraphModule):
    """Writes its Python code when somebody asks for it, not whenever its graph is set.

    Writing the code of thousands of nodes takes longer than most passes, and what a pass leaves to the next is rarely
    run.
    """

    def recompile(self) -> Any:
        """Nothing yet."""

    @property
    def code(self) -> str:
        super().recompile()
        return super().code

    def forward(self, *args: Any) -> Any:
        super().recompile()  # puts the code into this object's own class, in front of this method
        return self.forward(*args)
