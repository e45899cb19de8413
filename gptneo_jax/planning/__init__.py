"""What a run needs, by estimate and by the compiler, and settings that fit."""
