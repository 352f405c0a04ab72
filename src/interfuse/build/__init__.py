"""Building: documents, tables and language models make one graph, in which every statement says where it comes from.

Use it on a folder of mixed files (PDF, web pages, mail, sheets, Word, slides, Markdown, text), or on a language model whose
knowledge shall be written down. Each statement carries its evidence down to characters, passes the ontology's contracts where
one is given, and leaves again when its document does. ``build offline`` needs neither a language model nor a network.
"""

from interfuse.core.rooms import door

TAKES = "documents (a folder or files) and/or a language model, often an ontology"
MAKES = "graph"
#: what ``interfuse build FOLDER`` does
DEFAULT = "offline"

__getattr__ = door(__name__)
