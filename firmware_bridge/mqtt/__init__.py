"""MQTT towards the plant: settings, messages and one connection to the broker."""

from firmware_bridge.mqtt.settings import MqttSettings, TopicLevel

__all__ = ["MqttSettings", "TopicLevel"]
