"""What stands between the network and the page: requests, logins, connections, bounds."""
