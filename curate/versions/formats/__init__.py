"""Export formats by name: one file each, and one line here."""

from curate.versions.formats import alpaca, messages, sharegpt
from curate.versions.formats.format import Exporter

EXPORTERS: dict[str, Exporter] = {
    exporter.name: exporter for exporter in (sharegpt.EXPORTER, messages.EXPORTER, alpaca.EXPORTER)
}
