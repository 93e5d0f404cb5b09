from ldm.commands.cli import augment

if __name__ == "__main__":
    augment()
