"""What a model is, in a few words that are the same in every process: keys of what is kept on disk."""

from autopart.keying.codekey import code_key, file_digest, loaded_files
from autopart.keying.identity import fingerprint
from autopart.keying.modelkey import model_key, models_stay

__all__ = ["code_key", "file_digest", "fingerprint", "loaded_files", "model_key", "models_stay"]
