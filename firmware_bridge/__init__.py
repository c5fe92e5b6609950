"""The wires: the reject controller and its serial link, Modbus, MQTT. Knows no images."""
