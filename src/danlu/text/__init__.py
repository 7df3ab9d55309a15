"""Text: tokenizers, chat templates, personal data, attribute words. The only place where messages become ids."""
