import multicast

GROUP = {"ip": "239.1.2.3", "port": 5000}


class Thermometer(multicast.Multicaster):
    def __iter__(self):
        for degrees in (21, 38, 44, 52, 30):
            yield f"temp={degrees}"


class Log(multicast.MulticastListener):
    def handle_packet(self, packet, addr):
        print("log:", packet.decode())
        return packet == b"temp=30"  # the last one


class Alarm(multicast.MulticastListener):
    filter = "temp=(4|5)"

    def handle_packet(self, packet, addr):
        print("ALARM:", packet.decode())
        return True  # one is enough


Log(**GROUP)
Alarm(**GROUP)
Thermometer(**GROUP, ttl=0, interval=0.1)
multicast.loop()
