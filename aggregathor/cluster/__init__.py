"""The processes of a training job: who they are, what they were told, and their rounds."""
