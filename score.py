from ldm.commands.cli import score

if __name__ == "__main__":
    score()
