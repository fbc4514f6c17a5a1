"""Models in repositories of the Hugging Face hub, named `hf://OWNER/NAME` or `hf://OWNER/NAME@REVISION`.

Files are downloaded into the cache of `huggingface_hub` once. Its environment variables hold here, too: HF_TOKEN,
HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE.
"""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import errno
import logging
import os
import re
from types import ModuleType

from bandtok_jax.runtime import extras, untrusted
from bandtok_jax.version import VERSION

PREFIX = "hf://"
EXPORT_FILES = ("config.json", "model.safetensors", "README.md")
_LOGIN = "set HF_TOKEN, or run  hf auth login"
_PART = r"[A-Za-z0-9][\w.-]{0,95}"
_REVISION = r"[^@\s]{0,199}[^/@\s]"
_NAME = re.compile(f"{_PART}/{_PART}")
_PATH = re.compile(f"{PREFIX}({_PART}/{_PART})(?:@({_REVISION}))?/?")
_COMMIT = re.compile("[0-9a-f]{40}")
LICENCE = "[a-z][a-z0-9.-]{1,60}"  # an identifier of https://huggingface.co/docs/hub/repositories-licenses
_CARD_LETTERS = 1 << 16  # of a model card that are read, far more than its metadata


@dataclasses.dataclass(frozen=True)
class Repository:
    """A repository at a revision.

    Attributes:
      name: "OWNER/NAME".
      revision: branch, tag or commit; "" for the newest commit of the main branch.
    """

    name: str
    revision: str = ""

    def __str__(self) -> str:
        return f"{PREFIX}{self.name}" + (f"@{self.revision}" if self.revision else "")

    @property
    def is_pinned(self) -> bool:
        """True for a commit, which never changes."""
        return bool(_COMMIT.fullmatch(self.revision))


def is_hub(path: str | os.PathLike | None) -> bool:
    """Returns whether a path names a repository."""
    return bool(path) and os.fspath(path).startswith(PREFIX)


def parse(path: str | os.PathLike) -> Repository:
    """Returns the repository that a path names.

    Raises:
      ValueError: it names no repository.
    """
    match = _PATH.fullmatch(os.fspath(path))
    if not match:
        raise ValueError(
            f"{untrusted.printable(path, 200)} names no repository: write hf://OWNER/NAME or hf://OWNER/NAME@REVISION"
        )
    return Repository(match[1], match[2] or "")


def download(path: str | os.PathLike, files: Sequence[str] = EXPORT_FILES) -> tuple[str, Repository]:
    """Downloads files of a repository, unless the cache holds them.

    Without a network, or with HF_HUB_OFFLINE, the cache is used as it is.

    Args:
      files: names or patterns.

    Returns:
      The folder that holds the files, and the repository at the commit that they belong to.

    Raises:
      ImportError: huggingface_hub is not installed.
      ValueError: the repository or its revision does not exist, or it cannot be reached and the cache has no copy.
    """
    repository = parse(path)
    library = _library(path)
    with _one_line_errors(str(repository), library):
        folder = library.snapshot_download(
            repository.name,
            revision=repository.revision or None,
            allow_patterns=list(files),
            library_name="bandtok-jax",
            library_version=VERSION,
        )
    return folder, Repository(repository.name, os.path.basename(folder))


def pin(path: str | os.PathLike, recorded: str = "") -> str:
    """Returns a path with the commit that its revision means now, or meant when it was recorded.

    Args:
      recorded: path with a commit from an earlier start; "" for none. It counts for a path of the same repository
        without a commit of its own.

    Raises:
      ImportError, ValueError: as for `download`.
    """
    repository = parse(path)
    if repository.is_pinned or (is_hub(recorded) and parse(recorded).name == repository.name):
        return str(repository) if repository.is_pinned else recorded
    return str(download(path)[1])


def require_login(name: str) -> None:
    """Raises an error unless `push` can be tried: a ValueError without a valid name or a token, or an ImportError."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"--push={untrusted.printable(name, 200)}: write OWNER/NAME, with letters, digits, -, _ and .")
    if not _library(f"--push={name}").get_token():
        raise ValueError(f"--push={name}: there is no token of the hub: {_LOGIN}")


def push(folder: str | os.PathLike, name: str, private: bool = False) -> Repository:
    """Uploads an export in one commit, and creates the repository if it does not exist.

    The model card then names the repository in place of "this folder". Other files of the folder are not uploaded.

    Args:
      folder: an export.
      name: "OWNER/NAME".
      private: a new repository is visible to its owner only. An existing one must be so.

    Returns:
      The repository at the new commit.

    Raises:
      ImportError, ValueError: as for `require_login`, the hub refuses it, or it cannot be reached.
    """
    require_login(name)
    library = _library(f"--push={name}")
    files = {file: os.path.join(folder, file) for file in EXPORT_FILES}
    with open(files["README.md"], encoding="utf-8") as file:
        card = file.read().replace("this folder", f"{PREFIX}{name}")
    content = {**files, "README.md": card.encode()}
    additions = [library.CommitOperationAdd(path_in_repo=file, path_or_fileobj=content[file]) for file in EXPORT_FILES]
    api = library.HfApi(library_name="bandtok-jax", library_version=VERSION)
    with _one_line_errors(f"--push={name}", library):
        api.create_repo(name, private=private or None, exist_ok=True)
        is_public = private and not api.model_info(name).private
        if not is_public:
            commit = api.create_commit(name, additions, commit_message=f"Upload an export of bandtok-jax {VERSION}")
            return Repository(name, commit.oid)
    raise ValueError(f"--push={name}: it exists and is public: leave out --private, or give another name")


def card_licence(folder: str | os.PathLike) -> str:
    """Returns the licence that the card of a downloaded repository states, "" for none.

    It is "other" where the card states something else than an identifier of the hub.
    """
    try:
        with open(os.path.join(folder, "README.md"), encoding="utf-8") as file:
            start = file.read(_CARD_LETTERS)
    except (OSError, ValueError):
        return ""
    # One line is searched: a card of a stranger can make a parser of YAML take hours, or all memory.
    metadata = start.partition("\n---")[0] if re.match(r"---[ \t]*\n", start) else ""
    match = re.search("^license:(.*)", metadata, re.MULTILINE)
    stated = match[1].partition(" #")[0].strip().strip("'\"") if match else ""
    return stated if re.fullmatch(LICENCE, stated) or not stated else "other"


def _library(path: str | os.PathLike) -> ModuleType:
    extras.require("huggingface_hub", os.fspath(path), otherwise="download the files and give their folder")
    import huggingface_hub
    import huggingface_hub.constants
    import huggingface_hub.errors

    return huggingface_hub


@contextlib.contextmanager
def _one_line_errors(name: str, library: ModuleType) -> Iterator[None]:
    """Turns the errors of huggingface_hub into a ValueError of one line that names the repository and the cure."""
    # All errors of HTTP derive from HTTPError, whose module depends on the version of huggingface_hub.
    errors, log = library.errors, logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.ERROR)  # its warnings repeat the errors
    try:
        yield
    except (errors.HTTPError, OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{name}: {_explain(error, library)}") from None
    finally:
        log.setLevel(level)


def _explain(error: BaseException, library: ModuleType) -> str:
    errors = library.errors
    cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error  # of an upload
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return f"its owner grants access on request: ask for it on the page of the repository, then {_LOGIN}"
    if status == 403:
        return "the token does not allow this: make a token with the right to write, and " + _LOGIN
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no such repository, or it is private: check the name; for a private one {_LOGIN}"
    if isinstance(error, errors.RevisionNotFoundError):
        return "the repository has no such revision: give a branch, a tag or a commit of it"
    if status == 401:
        return f"the token is not valid: {_LOGIN}"
    if isinstance(error, errors.LocalEntryNotFoundError):
        if library.constants.HF_HUB_OFFLINE:
            return "the cache has no complete copy, and HF_HUB_OFFLINE forbids a download: unset it once"
        reason = type(error.__cause__ or error).__name__
        return (
            f"the hub cannot be read ({reason}) and the cache has no complete copy: connect to the network, or give a "
            "folder"
        )
    if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
        return "the disk of the cache is full: free some space, or set HF_HOME to another folder"
    text = untrusted.one_line(str(cause).strip().partition("\n")[0] or type(cause).__name__)
    return f"{text}; check the network, the name and the token, and try again"
