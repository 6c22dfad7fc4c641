"""A store with conversations to review, and review sets on the labelling server as annotators see them."""

from support.stores import add, chat, questions

from curate.scorers.runner import score_store
from schemas.conversation import Conversation, Turn
from schemas.recipe import Recipe
from schemas.store import reading

LONG = chat("Where is it?", "On its way.", "Since when?", "Since Monday.")
HOSTILE = chat("<img src=x onerror=alert(1)>", "<think>hm & so</think><script>alert(2)</script>")
TOOLS = Conversation(
    (
        Turn("human", "Is the pump there?"),
        Turn("function_call", '{"name": "find", "arguments": {"what": "pump"}}'),
        Turn("observation", '{"there": true}'),
        Turn("gpt", "Yes."),
    ),
    '[{"name": "find", "parameters": {}}]',
)


def add_reviewed(store):
    """Add these conversations and five questions to a store, and score them."""
    add(store, [LONG, HOSTILE, TOOLS, *questions(5)])
    score_store(store, Recipe())
    return store


class RemoteDataset:
    """A review set on the server, as annotators see it."""

    def __init__(self, server, name):
        self.server = server
        sets = server.ask("GET", "me/datasets")["items"]
        self.id = next(one["id"] for one in sets if one["name"] == name)

    @property
    def records(self):
        path = f"datasets/{self.id}/records?limit=1000&include=responses,suggestions"
        return {record["external_id"]: record for record in self.server.ask("GET", path)["items"]}

    @property
    def count(self):
        return self.server.ask("GET", f"datasets/{self.id}/records?limit=1")["total"]

    def answer(self, who, conversation, status="submitted", **values):
        """Answer with an annotator's key; a second call changes the answer."""
        _, _, key = self.server.annotator(who)
        body = {"status": status, "values": {name: {"value": value} for name, value in values.items()} or None}
        record = self.records[conversation]["id"]
        me = self.server.ask("GET", "me", key=key)["id"]
        existing = [one["id"] for one in self.records[conversation]["responses"] if one["user_id"] == me]
        if existing:
            return self.server.ask("PUT", f"responses/{existing[0]}", body, key=key)["id"]
        return self.server.ask("POST", f"records/{record}/responses", body, key=key)["id"]

    def shown_to(self, who, limit=100):
        """The first conversations that the page gives an annotator to answer, in order."""
        _, _, key = self.server.annotator(who)
        pending = {"type": "terms", "scope": {"entity": "response", "property": "status"}, "values": ["pending"]}
        path = f"me/datasets/{self.id}/records/search?limit={limit}"
        body = {"filters": {"type": "and", "and": [pending]}}
        return [each["record"]["external_id"] for each in self.server.ask("POST", path, body, key=key)["items"]]

    def delete(self, conversation):
        self.server.ask("DELETE", f"datasets/{self.id}/records?ids={self.records[conversation]['id']}")


def verdicts(store):
    with reading(store) as connection:
        return dict(connection.sql("SELECT conversation, verdict FROM verdicts ORDER BY rowid").fetchall())
