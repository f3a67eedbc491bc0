"""VehicleControlAPI: a car. Distances and postcodes are those that the benchmark's questions and answers speak of."""

from collections.abc import Mapping
from typing import Any, ClassVar

from .base import Api, ApiError, require

ZIPCODES = {
    "Rivermist": "83214", "Stonebrook": "74532", "San Francisco": "94016", "Silverpine": "62947", "Oakendale": "47329",
    "Crescent Hollow": "69238", "Autumnville": "51479",
}  # fmt: skip
# Kilometres. The last two are read by tasks whose answers do not say them, so they are ours.
DISTANCES = {
    frozenset({"83214", "94016"}): 980.0, frozenset({"83214", "74532"}): 750.0, frozenset({"69238", "51479"}): 630.0,
    frozenset({"94016", "62947"}): 780.0, frozenset({"94016", "74532"}): 880.0, frozenset({"62947", "47329"}): 460.0,
}  # fmt: skip
TANK_GALLONS, MILES_PER_GALLON, LITERS_PER_GALLON = 50.0, 20.0, 3.785411784
FULL_BRAKE_NEWTONS, PARKING_BRAKE_NEWTONS = 1000.0, 500.0
HEALTHY_PRESSURE = (30.0, 35.0)
TIRE_SHOP = "456 Oakwood Avenue, Rivermist, 83214"
DOORS = ("driver", "passenger", "rear_left", "rear_right")
TIRES = ("frontLeftTirePressure", "frontRightTirePressure", "rearLeftTirePressure", "rearRightTirePressure")


class VehicleControlAPI(Api):
    """The car's state, under the names of the benchmark's configurations."""

    INITIAL: ClassVar[Mapping[str, Any]] = {
        "fuelLevel": 0.0,
        "batteryVoltage": 12.6,
        "engineState": "stopped",
        "doorStatus": dict.fromkeys(DOORS, "unlocked"),
        "acTemperature": 25.0,
        "fanSpeed": 50,
        "acMode": "auto",
        "humidityLevel": 50.0,
        "headLightStatus": "off",
        "parkingBrakeStatus": "released",
        "parkingBrakeForce": 0.0,
        "slopeAngle": 0.0,
        "brakePedalStatus": "released",
        "brakePedalForce": 0.0,
        "distanceToNextVehicle": 50.0,
        "cruiseStatus": "inactive",
        "currentSpeed": 0.0,
        "destination": "None",
        **dict.fromkeys(TIRES, 32.0),
    }
    fuelLevel: float
    batteryVoltage: float
    engineState: str
    doorStatus: dict[str, str]
    acTemperature: float
    fanSpeed: int
    acMode: str
    humidityLevel: float
    headLightStatus: str
    parkingBrakeStatus: str
    parkingBrakeForce: float
    slopeAngle: float
    brakePedalStatus: str
    brakePedalForce: float
    distanceToNextVehicle: float
    cruiseStatus: str
    currentSpeed: float
    destination: str

    def startEngine(self, ignitionMode: str) -> dict[str, Any]:
        require(ignitionMode in ("START", "STOP"), "ignitionMode is START or STOP")
        if ignitionMode == "START":
            unlocked = [door for door, status in self.doorStatus.items() if status == "unlocked"]
            require(not unlocked, f"lock all doors first; unlocked: {', '.join(unlocked)}")
            require(self.brakePedalForce == FULL_BRAKE_NEWTONS, "press the brake fully first")
            require(self.fuelLevel > 0, "the fuel tank is empty")
        self.engineState = "running" if ignitionMode == "START" else "stopped"
        return {"engineState": self.engineState, "fuelLevel": self.fuelLevel, "batteryVoltage": self.batteryVoltage}

    def fillFuelTank(self, fuelAmount: float) -> dict[str, Any]:
        require(fuelAmount >= 0, "the amount must not be negative")
        require(self.fuelLevel + fuelAmount <= TANK_GALLONS, "the tank holds 50 gallons")
        self.fuelLevel += fuelAmount
        return {"fuelLevel": self.fuelLevel}

    def lockDoors(self, unlock: bool, door: list[str]) -> dict[str, Any]:
        strange = [one for one in door if one not in self.doorStatus]
        require(not strange, f"there is no door {', '.join(strange)}")
        for one in door:
            self.doorStatus[one] = "unlocked" if unlock else "locked"
        remaining = sum(status == "unlocked" for status in self.doorStatus.values())
        return {"lockStatus": "unlocked" if unlock else "locked", "remainingUnlockedDoors": remaining}

    def adjustClimateControl(
        self, temperature: float, unit: str = "celsius", fanSpeed: int = 50, mode: str = "auto"
    ) -> dict[str, Any]:
        require(0 <= fanSpeed <= 100, "the fan speed is between 0 and 100")
        require(unit in ("celsius", "fahrenheit"), "the unit is celsius or fahrenheit")
        require(mode in ("auto", "cool", "heat", "defrost"), "the mode is auto, cool, heat or defrost")
        self.acTemperature = (temperature - 32) * 5 / 9 if unit == "fahrenheit" else temperature
        self.fanSpeed, self.acMode = fanSpeed, mode
        return {"currentTemperature": self.acTemperature, "climateMode": mode, "humidityLevel": self.humidityLevel}

    def get_outside_temperature_from_google(self) -> dict[str, Any]:
        return {"outsideTemperature": 18.0}

    def get_outside_temperature_from_weather_com(self) -> dict[str, Any]:
        raise ApiError("weather.com does not answer")

    def setHeadlights(self, mode: str) -> dict[str, Any]:
        require(mode in ("on", "off", "auto"), "the mode is on, off or auto")
        self.headLightStatus = "on" if mode == "on" else "off"
        return {"headlightStatus": self.headLightStatus}

    def displayCarStatus(self, option: str) -> dict[str, Any]:
        shown: dict[str, dict[str, Any]] = {
            "fuel": {"fuelLevel": self.fuelLevel},
            "battery": {"batteryVoltage": self.batteryVoltage},
            "doors": {"doorStatus": dict(self.doorStatus)},
            "climate": {
                "currentACTemperature": self.acTemperature,
                "fanSpeed": self.fanSpeed,
                "climateMode": self.acMode,
                "humidityLevel": self.humidityLevel,
            },
            "headlights": {"headlightStatus": self.headLightStatus},
            "parkingBrake": {
                "parkingBrakeStatus": self.parkingBrakeStatus,
                "parkingBrakeForce": self.parkingBrakeForce,
                "slopeAngle": self.slopeAngle,
            },
            "brakePedal": {"brakePedalStatus": self.brakePedalStatus, "brakePedalForce": self.brakePedalForce},
            "engine": {"engineState": self.engineState},
        }
        require(option in shown, f"options are {', '.join(shown)}")
        return {"status": shown[option]}

    def activateParkingBrake(self, mode: str) -> dict[str, Any]:
        require(mode in ("engage", "release"), "the mode is engage or release")
        self.parkingBrakeStatus = "engaged" if mode == "engage" else "released"
        self.parkingBrakeForce = PARKING_BRAKE_NEWTONS if mode == "engage" else 0.0
        return {
            "parkingBrakeStatus": self.parkingBrakeStatus,
            "_parkingBrakeForce": self.parkingBrakeForce,
            "_slopeAngle": self.slopeAngle,
        }

    def pressBrakePedal(self, pedalPosition: float) -> dict[str, Any]:
        require(0 <= pedalPosition <= 1, "the pedal's position is between 0 and 1")
        self.brakePedalForce = FULL_BRAKE_NEWTONS * pedalPosition
        self.brakePedalStatus = "pressed" if pedalPosition else "released"
        return {"brakePedalStatus": self.brakePedalStatus, "brakePedalForce": self.brakePedalForce}

    def releaseBrakePedal(self) -> dict[str, Any]:
        return self.pressBrakePedal(0.0)

    def setCruiseControl(self, speed: float, activate: bool, distanceToNextVehicle: float) -> dict[str, Any]:
        if activate:
            require(self.engineState == "running", "start the engine first")
            require(0 <= speed <= 120 and speed % 5 == 0, "the speed is a multiple of 5 between 0 and 120")
            self.currentSpeed = float(speed)
        self.cruiseStatus = "active" if activate else "inactive"
        self.distanceToNextVehicle = distanceToNextVehicle
        return {
            "cruiseStatus": self.cruiseStatus,
            "currentSpeed": self.currentSpeed,
            "distanceToNextVehicle": self.distanceToNextVehicle,
        }

    def get_current_speed(self) -> dict[str, Any]:
        return {"currentSpeed": self.currentSpeed}

    def display_log(self, messages: list[str]) -> dict[str, Any]:
        return {"log": list(messages)}

    def estimate_drive_feasibility_by_mileage(self, distance: float) -> dict[str, Any]:
        return {"canDrive": self.fuelLevel * MILES_PER_GALLON >= distance}

    def liter_to_gallon(self, liter: float) -> dict[str, Any]:
        return {"gallon": liter / LITERS_PER_GALLON}

    def gallon_to_liter(self, gallon: float) -> dict[str, Any]:
        return {"liter": gallon * LITERS_PER_GALLON}

    def estimate_distance(self, cityA: str, cityB: str) -> dict[str, Any]:
        cities = frozenset({cityA, cityB})
        require(cities in DISTANCES, "the distance between these postcodes is not known")
        return {"distance": DISTANCES[cities], "intermediaryCities": []}

    def get_zipcode_based_on_city(self, city: str) -> dict[str, Any]:
        return {"zipcode": ZIPCODES.get(city, "00000")}

    def set_navigation(self, destination: str) -> dict[str, Any]:
        self.destination = destination
        return {"status": f"navigating to {destination}"}

    def check_tire_pressure(self) -> dict[str, Any]:
        pressures = {tire: getattr(self, tire) for tire in TIRES}
        low, high = HEALTHY_PRESSURE
        healthy = low <= sum(pressures.values()) / len(pressures) <= high
        return {"tirePressure": {**pressures, "healthy_tire_pressure": healthy, "car_info": {}}}

    def find_nearest_tire_shop(self) -> dict[str, Any]:
        return {"shopLocation": TIRE_SHOP}
