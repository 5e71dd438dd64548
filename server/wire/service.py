"""The services: every method of reid.v1, in one table."""

from collections.abc import Sequence

from reidserve.server.wire import gallery, model, search, writing
from reidserve.server.wire.methods import GALLERY_SERVICE, SERVICE, Method

__all__ = ["GALLERY_SERVICE", "SERVICE", "methods", "services"]


def methods(reload: model.Reload) -> Sequence[Method]:
    """Every method of reid.v1, those of a service together; `reload` puts another model in the place of the one that
    serves.
    """
    return (*search.METHODS, *gallery.METHODS, *writing.METHODS, *model.methods(reload))


def services(methods: Sequence[Method]) -> Sequence[str]:
    """The full names of the services that methods are of, for health and reflection."""
    return list(dict.fromkeys(method.service for method in methods))
