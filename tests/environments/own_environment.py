"""An environment as a user would write one: a switchboard of lamps."""

from typing import Any

LAMP = {"type": "string", "description": "which", "enum": ["red", "green"]}


class Lamps:
    """Two lamps; `broken` raises, as a user's own code may."""

    def reset(self, **row: Any) -> None:
        self.lit = dict.fromkeys(("red", "green"), False)

    def tools(self) -> list[dict[str, Any]]:
        schema = {
            "type": "object",
            "properties": {"lamp": LAMP, "times": {"type": "integer", "description": "how often"}},
        }
        press = {"name": "press", "description": "Press.", "parameters": {**schema, "required": ["lamp"]}}
        broken = {"name": "broken", "description": "Fails.", "parameters": {"type": "object", "properties": {}}}
        return [{"type": "function", "function": broken}, {"type": "function", "function": press}]

    def call(self, name: str, arguments: Any) -> str:
        if name == "broken":
            raise RuntimeError("a fuse blew")
        for _ in range(arguments.get("times", 1)):
            self.lit[arguments["lamp"]] = not self.lit[arguments["lamp"]]
        return "click"

    def state(self) -> dict[str, Any]:
        return self.lit


class Unsorted(Lamps):
    def tools(self) -> list[dict[str, Any]]:
        return super().tools()[::-1]


class Nested(Lamps):
    def tools(self) -> list[dict[str, Any]]:
        found = super().tools()
        found[1]["function"]["parameters"]["properties"]["times"] = {"type": "array", "items": {}, "description": "x"}
        return found


class Reserved(Lamps):
    def tools(self) -> list[dict[str, Any]]:
        found = super().tools()
        found[1]["function"]["name"] = "reset"
        return found


class Stateless:
    def reset(self, **row: Any) -> None: ...

    def call(self, name: str, arguments: Any) -> str:
        return ""
