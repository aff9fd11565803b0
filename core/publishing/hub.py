"""A push to a repository of models on the Hugging Face hub: one commit, or none."""

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from ..hub import talking
from ..training.card import CARD_FILE
from .content import Content, is_published
from .targets import check_place

# What every repository is made with.
_OWN = {".gitattributes"}


class HubTarget:
    """The repository ``USER/NAME``; made where it is missing."""

    def __init__(self, repository: str, private: bool, revision: str | None):
        self.place = self.name = repository
        self._private, self._revision = private, revision

    def send(self, content: Content, message: str, *, overwrite: bool, quiet: bool) -> str:
        """Upload the files in one commit, which also takes away what an earlier push left."""
        api, repository = HfApi(), self.place
        with talking("push to", repository, "model", quiet):
            there = self._names(api)
        check_place(there, f"{repository} on the hub", overwrite=overwrite)
        with talking("push to", repository, "model", quiet):
            api.create_repo(repository, private=self._private, exist_ok=True)
            if self._revision is not None:
                api.create_branch(repository, branch=self._revision, exist_ok=True)
            sent = [CommitOperationAdd(CARD_FILE, content.card.encode())]
            sent += [CommitOperationAdd(name, path) for name, path in content.files.items()]
            stale = [name for name in there if is_published(name) and name not in content.sizes]
            gone = [CommitOperationDelete(name) for name in stale]
            commit = api.create_commit(
                repository, [*sent, *gone], commit_message=message, revision=self._revision
            )
        return str(commit.oid)

    def _names(self, api: HfApi) -> list[str]:
        if not api.repo_exists(self.place):
            return []
        if self._revision is not None and not api.revision_exists(self.place, self._revision):
            # A new branch begins with what the main one holds.
            names = api.list_repo_files(self.place)
        else:
            names = api.list_repo_files(self.place, revision=self._revision)
        return [name for name in names if name not in _OWN]
