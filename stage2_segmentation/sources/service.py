"""Rankings from a ranking service (`kappaseg serve`): images that no cache holds are sent to it.

The ranking is that of the whole image, so a service ranks in evaluation and prediction; in training, which sees crops,
name one of its caches (source.service_cache) and images are looked up there by their ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from kappaseg_core.client import RankingClient
from kappaseg_core.errors import UserError
from kappaseg_core.ranking import Ranking
from label_cache import class_difference
from stage2_segmentation.sources import SourceInputs, ranking_of

ALL_RANKS = False


@dataclass(frozen=True)
class Service:
    client: RankingClient
    kappa: int
    cache: str | None
    fingerprint: str

    def __call__(self, image_ids: Sequence[str], mask: Tensor | None, image: Tensor | None = None) -> Ranking:
        if self.cache is not None:
            rows = self.client.lookup(image_ids, cache=self.cache, kappa=self.kappa)
            self.refuse_other(rows.version)
            return ranking_of(rows.labels, rows.scores)
        if image is None:
            raise UserError(
                f"service {self.client.url} ranks whole images, and training sees crops of {image_ids[0]}; name one of "
                "its caches (--source.service_cache NAME), or write one with kappaseg rank"
            )
        return self.live(image.numpy())

    def live(self, image: NDArray[Any]) -> Ranking:
        """The ranking of an image u8 [3, H, W] by the service's classifier."""
        found = self.client.rank(image, kappa=self.kappa)
        self.refuse_other(found.model)
        return ranking_of(found.ids[None], found.scores[None])

    def refuse_other(self, version: str) -> None:
        """Raises UserError where something else answers than at the start."""
        if version != self.fingerprint:
            raise UserError(
                f"service {self.client.url} answered from {self.fingerprint[:12]} and now from {version[:12]}: its "
                f"{'classifier' if self.cache is None else f'cache {self.cache}'} was replaced; start again"
            )


def build(inputs: SourceInputs) -> Service:
    if inputs.url is None:
        raise UserError("source service needs the service's address; add --source.url http://HOST:PORT")
    client = RankingClient(inputs.url)
    if difference := class_difference(client.vocabulary(), inputs.class_names):
        raise UserError(
            f"service {inputs.url} has another class list: {difference}; start one with the classifier of this data set"
        )
    return Service(client, inputs.kappa, inputs.service_cache, version_of(client, inputs.service_cache, inputs.kappa))


def version_of(client: RankingClient, cache: str | None, kappa: int) -> str:
    """Fingerprint of what answers: the classifier, or the generation of the cache. Raises UserError."""
    if cache is not None:
        return client.lookup([], cache=cache, kappa=kappa).version
    classifier = client.models()["classifier"]
    if classifier is None:
        raise UserError(f"service {client.url} ranks no new images; start it with --classifier, or name a cache of it")
    return str(classifier["version"])
