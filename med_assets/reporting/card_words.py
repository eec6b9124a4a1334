"""What only a person knows of a data set or a model: licence, contacts, citation, and what may be published.

It stands in `conf/<program>/_card.yaml`, which a site writes itself. The cards call what is missing absent; nothing
is guessed.
"""

from datetime import date
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from med_assets import program
from med_assets.errors import ConfigurationError
from med_assets.storage.conf import conf_folder
from med_assets.storage.files import read_yaml

FILE = "_card.yaml"

ABSENT = "not declared"
"""What a card says in place of a value that the site does not give."""

Cases = Literal["counts", "artifacts", "pseudonyms"]

Files = Literal["images", "all"]

Address = Field(default=None, pattern=r"^(https?|ftp|mailto):\S+$")


class _Words(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True, str_min_length=1)


class Contact(_Words):
    """A person or an organization that answers for something."""

    name: str
    kind: Literal["organization", "person"] = "organization"
    email: str | None = Field(default=None, pattern=r"^[^@\s]+@[^@\s]+$")
    url: str | None = Address

    @property
    def line(self) -> str:
        """Name and addresses in one line."""
        return ", ".join(filter(None, (self.name, self.email, self.url)))


class DatasetWords(_Words):
    """The site's words about a data set, and how much of it a card publishes."""

    title: str | None = None
    description: str | None = Field(default=None, description="after what med_assets says of the program")
    license: str | None = Field(default=None, description="address of the licence, or its name at spdx.org")
    url: str | None = Address
    release: str | None = Field(
        default=None, pattern=r"^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)$", description="such as 1.0.0"
    )
    published: date | None = None
    citation: str | None = Field(default=None, description="as BibTeX, if possible")
    creators: tuple[Contact, ...] = ()
    keywords: tuple[str, ...] = ()
    cases: Cases = Field(
        default="artifacts",
        description="counts: no row per case; artifacts: one with the keys and hashes of its arrays; pseudonyms: with those of case and patient too",
    )
    files: Files = Field(
        default="images",
        description="images: hashes of the arrays that a model sees; all: of labels and small files too, whose few possible contents a hash gives away",
    )
    facts: tuple[str, ...] = Field(default=(), description="measured facts that stand in the row of each case")

    @model_validator(mode="after")
    def _facts_have_rows(self) -> "DatasetWords":
        if self.facts and self.cases == "counts":
            raise ValueError("facts: expected none, since cases is counts and no case has a row")
        return self


class ModelWords(_Words):
    """The site's words about its models."""

    license: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9][a-z0-9.-]*$",
        description="as the Hugging Face Hub names it, such as apache-2.0; or other",
    )
    license_name: str | None = None
    license_link: str | None = Address
    contacts: tuple[Contact, ...] = ()
    citation: str | None = None
    intended_use: str | None = Field(default=None, description="after the program's own")
    out_of_scope: str | None = Field(default=None, description="after the program's own")
    limitations: tuple[str, ...] = Field(default=(), description="after the program's own")

    @model_validator(mode="after")
    def _other_licence_has_a_name(self) -> "ModelWords":
        if self.license == "other" and not (self.license_name and self.license_link):
            raise ValueError("license: other needs license_name and license_link")
        if self.license != "other" and (self.license_name or self.license_link):
            raise ValueError("license_name and license_link: expected only with license: other")
        return self


class CardWords(_Words):
    """The content of `_card.yaml`."""

    dataset: DatasetWords = Field(default_factory=DatasetWords)
    model: ModelWords = Field(default_factory=ModelWords)

    @property
    def absent_of_dataset(self) -> tuple[str, ...]:
        """What a data card should have and the site does not give."""
        return _absent(self.dataset, "license", "creators", "citation", "published", "url", "release")

    @property
    def absent_of_model(self) -> tuple[str, ...]:
        """What a model card should have and the site does not give."""
        return _absent(self.model, "license", "contacts", "citation")


def _absent(words: BaseModel, *names: str) -> tuple[str, ...]:
    return tuple(name for name in names if not getattr(words, name))


def card_words(program_name: str) -> CardWords:
    """The words of a site for a program, all absent without a file. Raises ConfigurationError that names the field."""
    where = f"conf/{program_name}/{FILE}"
    path = conf_folder(program_name) / FILE
    content = read_yaml(path) if path.is_file() else None
    try:
        words = CardWords.model_validate(content or {})
    except ValidationError as error:
        raise ConfigurationError(f"{where}: {error}") from error
    known = program.get(program_name).facts
    if unknown := [name for name in words.dataset.facts if name not in known]:
        raise ConfigurationError(
            f"{where}: dataset.facts: expected facts among {', '.join(known)}, got {', '.join(unknown)}"
        )
    return words
